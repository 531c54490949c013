"""Small experiments with known answers: python -m jaxrl.experiments.studies.NAME runs one."""
