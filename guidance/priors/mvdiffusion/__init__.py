"""MVDiffusion (Tang et al. 2023, arXiv 2307.01097): views of a scene attend to each other's corresponding pixels."""
