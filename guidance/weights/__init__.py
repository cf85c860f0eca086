"""Files of priors: find, read safely, convert, write."""
