"""Acceptance table of the export: synthetic shapes, comparisons and rules."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import export, export_asset
from benchmarks.export import RULES, Rule, jobs
from benchmarks.export_asset import Job, iou, mean_distance, silhouette, similarity
from benchmarks.export_fields import SHAPES, TAIL, Creature, Primitive, Voxels
from benchmarks.table import Row, Table
from tests.support.ball_run import Ball, ball_run, register
from threedgen.config.errors import ConfigError
from threedgen.export.options import AssetConfig
from threedgen.export.renders import spiral_cameras
from threedgen.export.run_field import field_view
from threedgen.export.shape.from_field import dense_surface, sample_density
from threedgen.representations.options import MarchConfig


def points(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- shapes


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_distance_is_1_lipschitz(shape: str) -> None:
    """Except for the relief; and it is positive at the boundary of the scene."""
    creature = Creature(shape)
    x = points(4000)
    step = 0.05 * torch.nn.functional.normalize(points(4000, 1), dim=1)
    change = (creature.distance(x + step) - creature.distance(x)).abs()
    assert change.max() < 0.05 + 2 * 0.0041
    on_sphere = torch.nn.functional.normalize(points(2000, 2), dim=1)
    assert creature.distance(on_sphere).min() > 0.02
    assert (creature.distance(x) < 0).float().mean() > 0.005


def test_animal_has_all_parts() -> None:
    creature = Creature("animal")
    assert len(creature.parts) == 34
    assert creature.distance(torch.tensor(np.linspace(*TAIL, 20), dtype=torch.float32)).max() < 0
    thinnest = min(size for part in creature.parts if part.kind == "cone" for size in part.sizes)
    assert thinnest == 0.003


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["cone", "ring", "disc"]))
def test_primitive_distance_leads_to_the_surface(seed: int, kind: str) -> None:
    """A step of the signed distance along its gradient ends on the surface."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-0.5, 0.5, 3), rng.uniform(-0.5, 0.5, 3)
    axis = b / np.linalg.norm(b)
    sizes = (0.1, 0.1) if kind == "cone" else (0.3, 0.1)  # inexact with two sizes
    primitive = Primitive(kind, tuple(a), tuple(b if kind == "cone" else axis), sizes, (1.0, 1.0, 1.0))
    if kind == "cone" and np.linalg.norm(b - a) < 0.3:
        return
    x = torch.tensor(rng.uniform(-1.5, 1.5, (300, 3)), dtype=torch.float32, requires_grad=True)
    distance = primitive.distance(x)
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    surface = (x - distance[:, None] * gradient).detach()
    good = gradient.norm(dim=1).sub(1).abs() < 1e-3
    assert primitive.distance(surface)[good].abs().quantile(0.9) < 0.05 and good.float().mean() > 0.5


def test_field_has_haze_hollows_and_floaters() -> None:
    field, other = Creature("stool", 1), Creature("stool", 2)
    x = points(20_000)
    distance, sigma = field.distance(x), field.density(x)
    near, inside = (distance > 0.1) & (distance < 0.2), distance < -0.05
    assert 0.1 < sigma[near].mean() < 5, "haze"
    assert sigma[inside].median() < 40 < sigma[distance.abs() < 0.01].max(), "hollow"
    assert sigma[distance > 0.2].max() > 3, "floaters"
    assert torch.equal(distance, other.distance(x)) and not torch.equal(sigma, other.density(x))
    assert torch.equal(sigma, Creature("stool", 1).density(x))
    assert 0 <= field.colour(x).min() and field.colour(x).max() <= 1


def test_voxels_match_the_field_and_render() -> None:
    creature, size = Creature("stool", 1), 33
    voxels = Voxels(creature, size)
    axis = torch.linspace(-1, 1, size)
    x = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    assert torch.allclose(voxels.density(x), creature.density(x), atol=1e-3)
    assert torch.allclose(voxels.colour(x), creature.colour(x), atol=1e-5)
    assert torch.allclose(torch.sigmoid(voxels(x)[1]), creature.colour(x), atol=1e-3)
    inside = x.norm(dim=1) <= 1
    grid = sample_density(voxels.view(), size).reshape(-1)
    assert np.allclose(grid[inside], creature.density(x)[inside], atol=1e-3)
    view = voxels.view()
    assert view.renderer is not None
    colours, opacity = view.renderer(spiral_cameras(2, 32))
    assert 0.02 < (opacity > 0.9).mean() < 0.5 and colours.shape == (2, 32, 32, 3)


# --- comparisons


def test_mesh_comparisons() -> None:
    ball = trimesh.creation.icosphere(3, 0.6)
    body = np.asarray(ball.vertices, np.float32), np.asarray(ball.faces)
    smaller = body[0] * np.float32(0.9), body[1]
    assert silhouette(body, body) == 1
    assert silhouette(body, smaller) == pytest.approx(0.81, abs=0.02)
    diagonal = 2 * 0.6 * 3**0.5
    assert mean_distance(body, smaller) == pytest.approx(0.06 / diagonal, rel=0.1)
    assert mean_distance(body, body) < 0.003
    a, b = np.array([True, True, False]), np.array([True, False, False])
    assert iou(a, b) == 0.5 and iou(a, a) == 1


def test_similarity_detects_wrong_texture_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    view = field_view(Ball(), None, MarchConfig(samples=96), "cpu")
    dense, _ = dense_surface(view, 48)
    uv = np.stack([(dense.vertices[:, 0] > 0.2).astype(np.float32), np.full(len(dense.vertices), 0.5)], axis=1)
    right = np.array([[[0.0, 0, 1], [1, 0, 0]]], np.float32)
    textures = {"right": right, "wrong": right[:, ::-1]}
    monkeypatch.setattr(export_asset, "TURNTABLE", 3)
    monkeypatch.setattr(export_asset, "PIXELS", 48)
    good = similarity(view, (dense.vertices, dense.faces), uv, textures)
    assert good["inside right"] > good["inside wrong"] + 6
    smaller = dense.vertices * np.float32(0.8)
    small = similarity(view, (smaller, dense.faces), uv, textures)
    assert 0.9 < good["outline"] <= 1 and small["outline"] < good["outline"] - 0.1


# --- table

SMALL = AssetConfig(budget=600, texture=256, lods=(200, 60), refine=3, height=0.5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SAMPLES": 2000, "PIXELS": 64, "VIEWS": 2, "TURNTABLE": 2, "LOW_POLY": 400}.items():
        monkeypatch.setattr(export_asset, name, value)


def test_rule_rows() -> None:
    low, zero, high, free = Rule("", "", low=2), Rule("", "", high=0), Rule("", "", high=0.5), Rule("", "")
    assert [rule.row([0])["bar"] for rule in (low, zero, high)] == [">= 2", "0", "<= 0.5"]
    row = {"check": "", "bar": ">= 2", "worst": "2", "median": "2.5", "held": "2 of 2", "verdict": "pass"}
    assert low.row([3, 2]) == row
    assert low.row([3, 1])["verdict"] == "FAIL" and low.row([3, 1])["held"] == "1 of 2"
    assert zero.row([0, 0])["verdict"] == "pass" and zero.row([0, 1])["worst"] == "1"
    assert free.row([0.5, 0.4])["worst"] == "0.4" and free.row([0.4])["verdict"] not in ("pass", "FAIL")


def by_key(table: Table) -> dict[str, Row]:
    keys = {rule.check: rule.key for rule in RULES}
    return {keys[str(row["check"])]: row for row in table.rows}


def test_every_rule_is_measured(small: None) -> None:
    table = export.assess([Job("stool_1", 64, "stool", 1, asset=SMALL)])
    rows = by_key(table)
    assert list(rows) == [rule.key for rule in RULES]
    assert rows["made"]["verdict"] == rows["budget"]["verdict"] == "pass"
    assert float(rows["silhouette"]["worst"]) > 0.8 and float(rows["outline"]["worst"]) > 0.5
    assert 0 < float(rows["time"]["worst"]) < 1
    assert json.loads(json.dumps(asdict(table)))["details"][0]["name"] == "stool_1"


def test_runs_are_measured_and_failures_are_noted(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    run = ball_run(tmp_path / "one")
    there, missing = (replace(job, asset=SMALL) for job in jobs(1, 64, [run, tmp_path / "two"]))
    assert (there.name, there.grid, there.run) == ("one", 64, run.resolve())
    table = export.assess([there, missing])
    rows = by_key(table)
    assert "truth" not in rows and rows["made"]["held"] == "1 of 2" and float(rows["outline"]["worst"]) > 0.8
    assert "one, two" in table.notes[0] and table.notes[1].startswith("two: ")


def test_field_without_an_asset_fails() -> None:
    def measure(job: Job) -> dict[str, Any]:
        raise ConfigError("the field is empty")

    table = export.assess([Job("01", run=Path("outputs/a"))], measure)
    assert [row["verdict"] for row in table.rows] == ["FAIL"] and table.notes[-1] == "01: the field is empty"
