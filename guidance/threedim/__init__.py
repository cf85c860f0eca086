"""3DiM (Watson et al., ICLR 2023): one view of a scene and two poses -> the other view, by diffusion.

options     sizes and forms of the network
logsnr      the noise schedule and everything that is a formula of it
rays        poses as maps of rays, and their encoding
blocks      FiLM residual block, attention, resampling
xunet       the network: X-UNet, and the baseline that concatenates the condition
sampler     views one after the other, each from all that are there (stochastic), the first, or the last few
model       what a network must have to be trained, sampled from and kept
latents     the 4-view prior's UNet as such a model, on its latents
folder      a trained model on the disk
port        weights of the public PyTorch port
novel_views a trained model as a novel-view sampler
"""
