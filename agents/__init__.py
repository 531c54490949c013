"""Agents, one file each: pure functions over `jaxrl` records."""

if __name__ == "agents":  # found in the working directory, it would be a second module object
    raise ImportError("import jaxrl.agents, not agents")
