"""Task `mvdreambooth`: tunes a multi-view prior on photos of one subject (MVDream, arXiv 2308.16512)."""
