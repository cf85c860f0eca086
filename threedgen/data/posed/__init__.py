"""Photos with poses: `transforms.json` of nerfstudio and Instant-NGP, and COLMAP models."""
