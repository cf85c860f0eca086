"""Density and colours from rendered depth."""

import torch

from threedgen.export.shape.from_depth import DepthFusion
from threedgen.export.shape.mesh import extract
from threedgen.export.surface.pictures import spiral_cameras
from threedgen.geometry.cameras import Cameras
from threedgen.representations.base import Render

RADIUS = 0.5


def render_ball(cameras: Cameras) -> Render:
    """Render a ball exactly: red for x > 0, else blue."""
    origins, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
    middle = -(origins * directions).sum(-1, keepdim=True)
    square = RADIUS**2 - (origins + middle * directions).square().sum(-1, keepdim=True)
    opacity = (square > 0).float()
    depth = (middle - square.clamp(min=0).sqrt()) * opacity
    red = (origins + depth * directions)[:, :1] > 0
    rgb = torch.cat([red, torch.zeros_like(red), ~red], dim=-1) * opacity
    return Render(rgb, rgb, torch.zeros_like(rgb), opacity, depth, torch.zeros_like(depth))


def test_fused_depth_of_a_ball_gives_its_surface_and_colours() -> None:
    fusion = DepthFusion(render_ball, spiral_cameras(24, 96), 1.0)
    mesh = extract(fusion.density, fusion.colour, resolution=64)
    distance = torch.from_numpy(mesh.vertices).norm(dim=-1)
    assert abs(float(distance.median()) - RADIUS) < 0.02
    seen = mesh.vertices[:, 2] > -0.2  # the cameras are above -40 degrees
    assert abs(distance[seen] - RADIUS).max() < 0.06
    side = (abs(mesh.vertices[:, 0]) > 0.1) & seen
    assert ((mesh.colours[side, 0] > 0.5) == (mesh.vertices[side, 0] > 0)).mean() > 0.97
