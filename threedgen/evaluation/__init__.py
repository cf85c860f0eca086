"""Measuring what priors draw and what runs make: a probe that looks at pictures, and the reports written with it."""
