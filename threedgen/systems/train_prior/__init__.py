"""The models of the toybox are trained: the 2D one, and from it the multi-view prior."""
