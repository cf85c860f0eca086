"""Figures of any pictures: distances of distributions, shares with intervals."""
