"""Evaluations of diffusion priors, views and 3D objects: tasks that measure items one by one and write a report."""
