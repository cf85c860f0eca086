"""Diffusion priors, their shared base class, and MVDream as a diffusers pipeline."""
