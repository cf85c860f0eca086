"""A procedural, captioned world of toys: the data that the embedded prior learns from, with its ground truth."""
