"""Run infrastructure: records, checkpoints, processes, statistics, plots.

The engine imports none of it.
"""
