"""Toybox: procedural 3D objects and rooms with captions and ground truth, the training data of the embedded models."""
