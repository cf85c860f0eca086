"""Tasks train-mvadapter and train-mvdiffusion: they add attention between views to a frozen 2D model, and train it.

Their LightningModules derive from the base class in `denoising.py`.
"""
