"""Scenes in the layout of the Scene Representation Networks archives: folders of images, poses and intrinsics."""
