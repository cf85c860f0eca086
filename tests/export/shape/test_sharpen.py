import numpy as np
import pytest
import trimesh

from threedgen.export.shape.from_field import isosurface, taubin
from threedgen.export.shape.sharpen import sharp_normals, sharpen
from threedgen.geometry.raster import unit
from threedgen.run.arrays import Array

SIZE, HALF = 48, np.array([0.6, 0.45, 0.3])
TURN = trimesh.transformations.euler_matrix(0.5, 0.3, 0.7)[:3, :3]
CELL = 2 / (SIZE - 1)


def box() -> tuple[Array, Array]:
    axis = np.linspace(-1, 1, SIZE)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1) @ TURN
    return isosurface((HALF - np.abs(points)).min(axis=-1).astype(np.float32), 0.0, CELL, 1.0)


def box_errors(points: Array, normals: Array) -> Array:
    """Angles in degrees between normals and those of the box at the points."""
    local = points @ TURN
    axis = (np.abs(local) - HALF).argmax(axis=1)
    cosine = (normals @ TURN)[np.arange(len(local)), axis] * np.sign(local[np.arange(len(local)), axis])
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def face_errors(vertices: Array, faces: Array) -> float:
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    return float(np.average(box_errors(mesh.triangles_center, mesh.face_normals), weights=mesh.area_faces))


def test_sharpen_makes_faces_flat_and_edges_sharp() -> None:
    vertices, faces = box()
    sharp = sharpen(vertices, faces)
    assert face_errors(sharp, faces) < 0.75 * face_errors(vertices, faces)
    assert face_errors(sharp, faces) < 0.6 * face_errors(taubin(vertices, faces, 10), faces)
    mesh = trimesh.Trimesh(sharp, faces, process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(8 * HALF.prod(), rel=0.01)
    assert np.abs(sharp - vertices).max() < 1.5 * CELL and sharp.dtype == np.float32


def test_sharp_normals_do_not_cross_edges() -> None:
    vertices, faces = box()
    vertices = sharpen(vertices, faces)
    normals = sharp_normals(vertices, faces, 10)
    margin = HALF - np.abs(vertices @ TURN)
    beside = np.sort(margin, axis=1)[:, 1] > 1.5 * CELL  # not on an edge
    errors = box_errors(vertices, normals)[beside]
    assert errors.mean() < 1.5 and np.percentile(errors, 99) < 8


def test_sharp_normals_smooth_noise_on_curves() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=5)
    lengths = np.random.default_rng(0).normal(1, 0.01, len(sphere.vertices))
    noisy = trimesh.Trimesh(sphere.vertices * lengths[:, None], sphere.faces, process=False)
    found = sharp_normals(np.asarray(noisy.vertices, np.float32), sphere.faces, 10)
    cosines = [(unit(n) * sphere.vertices).sum(1) for n in (noisy.vertex_normals, found)]
    errors = np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean(axis=1)
    assert errors[0] > 9 and errors[1] < 0.4 * errors[0]
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5) and found.dtype == np.float32


def test_sharpen_leaves_a_ball_round() -> None:
    axis = np.linspace(-1, 1, SIZE)
    distance = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1), axis=-1)
    vertices, faces = isosurface((0.6 - distance).astype(np.float32), 0.0, CELL, 1.0)
    sharp = sharpen(vertices, faces)
    mesh = trimesh.Trimesh(sharp, faces, process=False)
    errors = np.degrees(np.arccos(np.clip((mesh.face_normals * unit(mesh.triangles_center)).sum(1), -1, 1)))
    assert np.average(errors, weights=mesh.area_faces) < 2
    assert np.abs(np.linalg.norm(sharp, axis=1) - 0.6).max() < 0.1 * CELL
