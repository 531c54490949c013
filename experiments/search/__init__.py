"""Hyperparameter search, `jaxrl search`."""
