"""Diffusion priors, their samplers, and the distillation losses that use them.

Import this package as ``threedgen.guidance``; the top-level name ``guidance`` belongs to another package.
"""

if __name__ == "guidance":
    raise ImportError("this folder is a part of threedgen: import threedgen.guidance instead of guidance")
