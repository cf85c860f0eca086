"""Recorded renderings of the reference's volumes: its arrays, its options, and the same scene rebuilt."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.frequency import Frequency
from tests.support.parity_files import tensors
from threedgen.representations import losses
from threedgen.representations.field.ngp import NGP
from threedgen.representations.march import pack
from threedgen.representations.options import NGPConfig
from threedgen.representations.shading import DiffuseMaterial, Material, Shading
from threedgen.representations.volume.options import MarchConfig
from threedgen.representations.volume.render import Render, render


class OneSided(NGP):
    """With the reference's normals from forward differences, which point into the object."""

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma, features = self(x)
        neighbours = (x[:, None] + 0.01 * torch.eye(3)).clamp(-self.options.radius, self.options.radius)
        return sigma, features, normalize(self.density(neighbours.view(-1, 3)).view(-1, 3) - sigma[:, None], dim=-1)


def unnormalised_z_variance(render: Render) -> Tensor:
    """Return the depth variance of MVDream's loss: the ray's weights are not divided by their sum."""
    solid = render.opacity > 0.5
    return torch.where(solid, render.z_variance, 0.0).sum() / solid.sum().clamp(min=1)


class Recorded:
    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.meta = dict(re.findall(r"(\w+)=(\{.*\}|\S+)", str(file["meta"])))
        self.data = tensors(path)
        self.one_sided = self.meta["normal"] == "finite_difference"

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]

    def per_ray(self, key: str) -> Tensor:
        """(views, ...) or (views, H, W, 3) to (R, 3)."""
        views, height, width, _ = self["rays_o"].shape
        value = self[key]
        return (value if value.ndim == 4 else value[:, None, None].expand(views, height, width, 3)).reshape(-1, 3)

    def field(self) -> NGP:
        blob, bias = (
            (self.meta["bias"], 0.0) if self.meta["bias"].startswith("blob") else ("none", float(self.meta["bias"]))
        )
        octaves = ast.literal_eval(self.meta["enc"])["n_frequencies"]
        options = NGPConfig(
            radius=self["radius"].item(),
            encoding={"n_levels": 3 * octaves, "log2_hashmap_size": 4},  # as many features
            width=len(self["w.density_network.layers.0.weight"]),
            hidden_layers=sum(key.startswith("w.density_network") for key in self.data) - 1,
            density_activation=self.meta["act"],
            density_blob=blob,
            density_bias=bias,
            density_blob_scale=float(self.meta["scale"]),
            density_blob_std=float(self.meta["std"]),
        )
        field = (OneSided if self.one_sided else NGP)(options)
        field.encoding = Frequency(octaves)
        names = {name: self["w." + name.replace("_mlp", "_network")] for name, _ in field.named_parameters()}
        field.load_state_dict(names)
        return field

    def render(self, field: NGP, monkeypatch: pytest.MonkeyPatch) -> Render:
        samples = pack(self["ray_indices"], self["t_starts"], self["t_ends"], self["rays_o"].numel() // 3)
        monkeypatch.setattr("threedgen.representations.volume.render.march", lambda *_: samples)
        shading = Shading()
        if self.meta["shading"] in ("textureless", "diffuse"):
            ambient = self["ambient_ratio"].item()
            shading = Shading(self.meta["shading"], ambient, 1 - ambient)
        return render(
            field,
            lambda directions, **_: self.per_ray("bg_color"),
            Material() if self.meta["material"] == "none" else DiffuseMaterial(),
            None,
            MarchConfig(radius=self["radius"].item()),
            self.per_ray("rays_o"),
            self.per_ray("rays_d"),
            light=self.per_ray("light_positions"),
            need_normals=self.meta["normal"] != "None",
            shading=shading,
        )

    def loss(self, seen: Render) -> Tensor:
        total = seen.rgb.square().sum() + losses.sparsity(seen) + losses.opaque(seen)
        total = total + unnormalised_z_variance(seen)
        if seen.normals is not None:
            total = total + losses.orientation(seen)
        return total
