"""Names of the conventions of camera poses. Imports no torch."""

from typing import Literal

PoseConvention = Literal["c2w-opengl", "c2w-opencv", "w2c-opengl", "w2c-opencv"]
"""Camera-to-world or world-to-camera matrices of cameras that look along -z with y up (OpenGL) or z with y down."""
