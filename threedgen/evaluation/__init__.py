"""Evaluations of priors, views and 3D objects. `runner.py` turns items into rows, and rows into a report of metrics."""
