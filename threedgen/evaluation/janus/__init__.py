"""Janus rate of text-to-3D methods: share of generated objects with several fronts, corrected for classifier errors."""
