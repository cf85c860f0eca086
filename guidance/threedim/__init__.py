"""3DiM (Watson et al., ICLR 2023): one view of a scene and two poses -> the other view, by diffusion."""
