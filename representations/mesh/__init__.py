"""A mesh as an object to optimise."""
