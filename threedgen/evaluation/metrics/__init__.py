"""Figures of any pictures: distributions, shares with intervals, ratings."""
