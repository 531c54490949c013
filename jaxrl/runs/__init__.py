"""Run infrastructure: records, checkpoints, processes, statistics and plots.

The engine imports nothing of this package.
"""
