"""Toybox evaluations: the probe (a classifier of toybox images), and scores of priors, 3D objects and subjects."""
