"""Samples of every prior: views of an object, panoramas."""
