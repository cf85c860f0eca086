"""MV-Adapter: views of an object by a frozen 2D model with plug-in attention and a guider (Huang et al. 2024)."""
