"""MV-Adapter (Huang et al. 2024): added attention layers let a frozen text-to-image model sample views of an object."""
