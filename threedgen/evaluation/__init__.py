"""Evaluations of priors, views and objects on one runner: items -> rows -> figures with intervals -> report."""
