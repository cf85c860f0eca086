"""Training tasks of priors (diffusion models) on the toybox, a procedural data set, and on user assets."""
