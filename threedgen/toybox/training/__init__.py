"""Training tasks of the toybox priors and of multi-view priors of user assets. The toybox is a procedural data set."""
