"""Names of the conventions of camera poses, such as "c2w-opengl": camera-to-world, OpenGL axes. Imports no torch."""

from typing import Literal

PoseConvention = Literal["c2w-opengl", "c2w-opencv", "w2c-opengl", "w2c-opencv"]
"""Convention of pose matrices: camera-to-world (c2w) or world-to-camera (w2c), for cameras that look along -z with y up
(OpenGL) or along +z with y down (OpenCV)."""
