"""MVDreamBooth (arXiv 2308.16512): train a multi-view prior on photos of one subject."""
