"""Datasets from the command line: `jaxrl data info`, `convert` and `make`."""
