"""Training MV-Adapter: attention beside that of a frozen 2D model, and the guider of its views."""
