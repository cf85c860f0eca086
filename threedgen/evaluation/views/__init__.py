"""Evaluation of views that are sampled together: consistency where they overlap, distance to true views."""
