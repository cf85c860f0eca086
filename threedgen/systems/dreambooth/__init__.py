"""One subject from a handful of photos: MVDreamBooth (arXiv 2308.16512)."""
