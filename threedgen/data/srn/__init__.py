"""Scenes as folders of pictures, poses and intrinsics, as the archives of Scene Representation Networks have them."""
