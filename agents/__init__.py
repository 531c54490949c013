"""Agents, one file each: pure functions over `jaxrl` records."""
