"""A prompt becomes an object."""
