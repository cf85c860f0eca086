"""Training toybox-base: a text-to-image model of single pictures, of which the multi-view prior is made."""
