"""Janus: does an object show more than one front? A meter with known error rates, and a benchmark that uses it."""
