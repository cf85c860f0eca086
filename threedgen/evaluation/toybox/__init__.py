"""Toybox evaluations: the probe, verdicts, and the measurements of priors, objects and subjects."""
