"""Evaluation of views that are sampled together: PSNR where they overlap, FID and KID to true views."""
