"""Tasks of the command line: config models, LightningModules of the trainings, and the functions that run a config."""
