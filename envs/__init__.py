"""Environments and datasets behind `jaxrl.types`."""
