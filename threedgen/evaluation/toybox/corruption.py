"""Makes true objects as methods leave them, rough or with two fronts: for the Janus meter, and for what its classifier
learns beside plain toybox pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from threedgen.data.coloured_mesh import Array, ColouredMesh, Part, drop_degenerate, toybox_mesh
from threedgen.data.toybox.primitives import Asset
from threedgen.data.toybox.world import Toybox

from .labels import OPEN, Truth

SHAKE, PAINT = 0.02, 0.07
"""Root mean square of the noise on places (world units) and on colours, at strength 1."""
WAVES = 0.08, 0.3
"""Wavelengths, world units: one is drawn for each object."""
EDGE = 0.1
"""Longer edges are halved until none is left, so that noise bends what was flat."""
TERMS = 24


def rough(mesh: ColouredMesh, rng: np.random.Generator, strength: float = 1.0) -> ColouredMesh:
    """Moves every point of ``mesh``, and changes its colours, by noise that neighbours share; 0: as it is.

    Points at one place move alike, so what is closed stays closed. Pictures on the surface are not changed.
    """
    if strength == 0:
        return mesh
    wave = rng.uniform(*WAVES)
    move, tint = (Noise(rng, wave) for _ in range(2))
    parts = []
    for part in mesh.parts:
        fine = subdivided(part)
        values = fine.values
        if part.texture is None:
            values = np.clip(values + PAINT * strength * tint(fine.corners), 0, 1)
        parts.append(replace(fine, corners=fine.corners + SHAKE * strength * move(fine.corners), values=values))
    return replace(mesh, parts=tuple(parts))


class Noise:
    """Three smooth functions of points (..., 3) with mean 0 and variance 1, independent of each other."""

    def __init__(self, rng: np.random.Generator, wave: float) -> None:
        self.frequency = rng.normal(size=(3, TERMS)) * (2 * np.pi / wave) / np.sqrt(3)
        self.phase = rng.uniform(0, 2 * np.pi, TERMS)
        self.weight = rng.normal(size=(TERMS, 3)) * np.sqrt(2 / TERMS)

    def __call__(self, points: Array) -> Array:
        value: Array = np.sin(points @ self.frequency + self.phase) @ self.weight
        return value


def subdivided(part: Part) -> Part:
    """Cuts triangles in four until their edges are ``EDGE`` at most; the surface stays the same."""
    rows, done = np.concatenate([part.corners, part.values], axis=2), []
    while len(rows):
        corners = rows[..., :3]
        long = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2).max(1) > EDGE
        done.append(rows[~long])
        a, b, c = rows[long].swapaxes(0, 1)
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        rows = np.concatenate([np.stack(t, axis=1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    whole = np.concatenate(done)
    return replace(part, corners=whole[..., :3], values=whole[..., 3:])


def two_fronted(mesh: ColouredMesh) -> ColouredMesh:
    """Joins two front halves, back to back: what is in front of the middle of the bounding box, and the same turned
    half around the vertical axis, as if a painter of single views had drawn the front again from behind.

    Of a mesh that is symmetric the two cuts lie on each other, so that what is closed stays closed.
    """
    x = mesh.corners[..., 0]
    middle = (x.min() + x.max()) / 2
    halves = [half for part in mesh.parts if len((half := _front_half(part, middle)).corners)]
    turn = np.array([-1.0, -1.0, 1.0])
    behind = [replace(half, corners=half.corners * turn + [2 * middle, 0, 0]) for half in halves]
    return replace(mesh, parts=tuple(halves + behind))


def _front_half(part: Part, middle: float) -> Part:
    """Cuts off what has x < middle; triangles across are cut, and what they carry is interpolated."""
    from trimesh.intersections import slice_faces_plane

    rows, values = part.corners.reshape(-1, 3), part.values.reshape(-1, part.values.shape[-1])
    faces = np.arange(len(rows)).reshape(-1, 3)
    corners, faces, values = slice_faces_plane(rows, faces, [1, 0, 0], [middle, 0, 0], uv=values)
    return drop_degenerate(replace(part, corners=corners[faces], values=values[faces]))


ROUGHEST = 2.0
"""Strengths of ``rough`` are drawn up to this one."""
SEGMENTS = 16
"""Of a round solid: few, for many things are drawn, and they are made rough."""
CLEAR = np.deg2rad(60)
"""Two glued fronts show a side so far from either of them; further, they show two sides at once."""


def corrupt(
    box: Toybox,
    indices: Sequence[int],
    assets: Sequence[Asset],
    rgb: Array,
    truth: Truth,
    share: float,
    rng: np.random.Generator,
) -> None:
    """Draws a ``share`` of the samples ``indices`` anew, rough, and half of these that have a front with two of them.

    rgb (N n, size, size, 3), views fastest, and the truth are changed in place.
    """
    n_view, size = len(rgb) // len(assets), rgb.shape[1]
    for k, (index, asset) in enumerate(zip(indices, assets, strict=True)):
        if rng.random() >= share:
            continue
        mine, two = slice(k * n_view, (k + 1) * n_view), asset.front and rng.random() < 0.5
        mesh = toybox_mesh(asset, SEGMENTS)
        mesh = rough(two_fronted(mesh) if two else mesh, rng, rng.uniform(0, ROUGHEST))
        c2w, fov, azimuth, grey = box.cameras(index, n_view)
        rgb[mine] = mesh.render(c2w, float(fov[0]), size, grey, light=True)
        if two:
            truth.seen[mine], truth.part_colour[mine] = OPEN, OPEN
            turned, clear = nearer_front(azimuth)
            truth.azimuth[mine], truth.front[mine] = torch.from_numpy(turned), torch.from_numpy(clear)


def nearer_front(azimuth: Array) -> tuple[Array, Array]:
    """Finds the azimuths (V,) from the nearer front, and which (V,) are clear, of cameras at ``azimuth`` (V,), radians,
    around a mesh with fronts at 0 and pi."""
    turned = np.where(np.cos(azimuth) < 0, azimuth + np.pi, azimuth) % (2 * np.pi)
    return turned.astype(np.float32), np.cos(turned) >= np.cos(CLEAR)
