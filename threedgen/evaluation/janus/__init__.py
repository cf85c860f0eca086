"""Janus rates: share of objects with more than one front, measured by a classifier with known errors."""
