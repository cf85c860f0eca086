"""Training tasks for parts of diffusion models. Their LightningModules derive from the base class in `denoising.py`."""
