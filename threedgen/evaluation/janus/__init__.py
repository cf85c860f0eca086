"""Janus rate of text-to-3D methods: the share of objects with more than one front, corrected for classifier errors."""
