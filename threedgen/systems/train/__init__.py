"""Trainings: denoising models on one Lightning module (`denoising.py`), and the networks around them."""
