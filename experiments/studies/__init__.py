"""Small experiments with known answers, run by python -m jaxrl.experiments.studies.NAME."""
