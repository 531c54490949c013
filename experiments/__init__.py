"""Where agents meet environments: command line, presets, run records, reports."""

if __name__ == "experiments":  # found in the working directory, it would be a second module object
    raise ImportError("import jaxrl.experiments, not experiments")
