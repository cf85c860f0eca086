"""3DiM (Watson et al., ICLR 2023): diffusion models that predict a view of a scene from another view and both poses."""
