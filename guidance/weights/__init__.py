"""The files of priors: found, read without trust, converted, written."""
