"""A multi-view prior learns users' own assets: their shapes, their style, their words."""
