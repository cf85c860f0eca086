"""MV-Adapter (Huang et al. 2024): a frozen 2D model samples views of an object through added attention layers."""
