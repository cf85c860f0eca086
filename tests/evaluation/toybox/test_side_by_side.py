"""Strip of truth, sample, object and asset of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import trimesh
from safetensors.torch import save_file

from threedgen.config import load
from threedgen.data.coloured_mesh import toybox_mesh
from threedgen.data.toybox.grammar import Spec
from threedgen.data.toybox.world import build, render_orbit
from threedgen.evaluation.toybox.object_score import strip
from threedgen.systems.generate.outputs import view_azimuths

SIZE = 48


def test_strip_shows_the_same_sides_of_all_forms(tmp_path: Path) -> None:
    config = load("quick-toybox", values={"prompt": "a blue dog", "out": str(tmp_path)})
    thing, table = build(Spec("dog", "blue"), np.random.default_rng(0)), config.result.turntable
    truth = render_orbit(thing, view_azimuths(table), np.deg2rad(table.elevation), SIZE, with_gbuffer=True, fov=0.7)
    save_file({"views": torch.from_numpy(truth.rgb[[0, 2, 4, 6]].copy())}, tmp_path / "preview.safetensors")
    nothing = strip(config, truth, truth.rgb, SIZE)
    assert nothing.shape == (8, SIZE, SIZE, 3) and (nothing[6:] == 128).all()  # it has no asset
    assert np.array_equal(nothing[:2], nothing[2:4]) and np.array_equal(nothing[:2], nothing[4:6])

    (part,) = toybox_mesh(thing).parts
    corners = part.corners.reshape(-1, 3)[:, [1, 2, 0]] * 0.3 + [0, 2, 0]  # y up, z to the front, in metres
    colours = (part.values.reshape(-1, 3) * 255).astype(np.uint8)
    mesh = trimesh.Trimesh(corners, np.arange(len(corners)).reshape(-1, 3), vertex_colors=colours, process=False)
    (tmp_path / "asset").mkdir()
    mesh.export(tmp_path / "asset" / "dog.glb")
    (tmp_path / "summary.json").write_text(json.dumps({"asset": {"file": "asset/dog.glb"}}))
    asset = strip(config, truth, truth.rgb, SIZE)[6:]
    for side, seen in enumerate(asset):
        shape = (seen != seen[0, 0]).any(-1)
        overlaps = [(shape & mask).sum() / (shape | mask).sum() for mask in truth.mask[[0, 2, 4, 6]]]
        assert np.argmax(overlaps[:2]) == side and overlaps[side] > 0.6
