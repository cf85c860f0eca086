"""Trainings of priors: the toybox's 2D model and multi-view prior, and priors of user assets."""
