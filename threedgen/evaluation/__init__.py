"""Evaluations of priors, views and 3D objects. `runner.py` measures items one by one and writes a report of metrics."""
