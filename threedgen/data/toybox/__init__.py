"""Procedural world of captioned 3D objects and rooms with ground truth: training data of the embedded prior."""
