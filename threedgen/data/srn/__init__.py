"""Scenes in the file layout of the Scene Representation Networks (SRN) archives: images, poses and intrinsics."""
