"""What differs from one diffusion prior to the next."""
