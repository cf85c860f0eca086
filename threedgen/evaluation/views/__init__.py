"""Evaluation of jointly sampled views of a scene: PSNR where views overlap, FID and KID to true views."""
