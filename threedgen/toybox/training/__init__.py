"""Training tasks of priors: the 2D model and the multi-view prior of the toybox, and multi-view priors of user assets.

The toybox is the procedural data set of the package (`threedgen.toybox`).
"""
