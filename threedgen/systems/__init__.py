"""One LightningModule for each kind of learning, and the functions that run a config of each task."""
