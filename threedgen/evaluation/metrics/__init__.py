"""Metrics of images, features and classifications, as pure functions of arrays."""
