"""Where agents meet environments: command line, presets, run records, reports."""
