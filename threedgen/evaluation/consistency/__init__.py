"""3D consistency score of novel-view samplers (Watson et al. 2023, "3DiM", sections 4 and 7.4)."""
