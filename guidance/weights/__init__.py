"""Weight files of priors (diffusion models): find them, read them safely, convert and write them."""
