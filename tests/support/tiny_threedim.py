"""Small 3DiM networks without zero weights, and inputs for them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from threedgen.geometry.cameras import Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.novel_view.options import XUNetConfig
from threedgen.guidance.novel_view.xunet import XUNet

TINY: dict[str, Any] = {
    "image_size": 8, "channels": 8, "channel_mult": (1, 2), "emb_channels": 8, "num_res_blocks": 1,
    "attn_resolutions": (4,), "attn_heads": 2, "groups": 4, "dropout": 0.0,
}  # fmt: skip


class Inputs(NamedTuple):
    x: Tensor
    z: Tensor
    logsnr: Tensor
    c2w: Tensor
    K: Tensor
    has_condition: Tensor


def tiny_network(**options: Any) -> XUNet:
    """Return a small network; its initial weights do not depend on the tests that ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = XUNet(XUNetConfig(**(TINY | options))).eval()
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # every branch has an effect
            parameter += 0.2 * torch.randn(parameter.shape, generator=gen)
    return network


def inputs(network: XUNet, batch: int = 2) -> Inputs:
    """Return random images with random cameras on an orbit, all conditional."""
    gen = torch.Generator().manual_seed(0)
    height, width = network.config.size
    x, z = torch.randn(2, batch, 3, height, width, generator=gen)
    logsnr = torch.stack([torch.full((batch,), 20.0), 6 * torch.rand(batch, generator=gen) - 3], dim=1)
    K = Projection.perspective(torch.full((batch,), 0.8), height, width).K
    return Inputs(x, z, logsnr, poses(2 * batch, gen).unflatten(0, (batch, 2)), K, torch.ones(batch, dtype=torch.bool))


def poses(count: int, gen: torch.Generator) -> Tensor:
    """Return random poses (count, 4, 4) around the object."""
    elevation, azimuth = torch.rand(2, count, generator=gen) * torch.tensor([[0.8], [6.28]])
    return orbit_c2w(elevation, azimuth, torch.full((count,), 1.3))
