"""Weight files of priors: find them, read them safely, convert and write them."""
