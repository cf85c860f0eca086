"""MV-Adapter: a frozen 2D model draws views by plug-in attention and a condition guider (Huang et al. 2024)."""
