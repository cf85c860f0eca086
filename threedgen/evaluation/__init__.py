"""Measuring what priors draw and what runs make: metrics of any pictures; on them toybox, a probe that looks at
pictures, and its reports; on both janus, consistency, views and assets."""
