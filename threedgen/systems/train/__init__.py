"""Training tasks: diffusion models, whose LightningModules derive from `denoising.py`, and the networks around them."""
