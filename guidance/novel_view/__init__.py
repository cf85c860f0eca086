"""Novel views of a scene by diffusion from one view and two poses (3DiM, Watson et al., ICLR 2023)."""
