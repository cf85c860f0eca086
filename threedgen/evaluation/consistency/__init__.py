"""3D consistency of novel views (Watson et al. 2023, "3DiM", sections 4 and 7.4)."""
