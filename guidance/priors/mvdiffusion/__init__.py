"""MVDiffusion: views sampled together by attention to corresponding pixels (Tang et al. 2023, arXiv 2307.01097)."""
