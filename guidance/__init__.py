"""Diffusion priors, their samplers, and the losses distilled from them.

Import this package as ``threedgen.guidance``; the bare name belongs to another project.
"""

if __name__ == "guidance":
    raise ImportError("this folder is a part of threedgen: import threedgen.guidance instead of guidance")
