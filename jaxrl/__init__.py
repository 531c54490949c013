"""Reinforcement learning compiled end to end."""
