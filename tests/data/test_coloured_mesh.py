from pathlib import Path

import numpy as np
import pytest
import trimesh

from tests.support.errors import refused
from threedgen.data.coloured_mesh import DEFAULT_COLOUR, ColouredMesh, EmptyMesh, fit_to_ball, read_mesh
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.world.toybox import Toybox, render_azimuths, toybox_mesh

DISTANCE, FOV = 0.95 / np.tan(np.deg2rad(20)), np.deg2rad(40)


def render(mesh: ColouredMesh, degrees: list[float], size: int = 32, light: bool = False) -> np.ndarray:
    a = np.deg2rad(np.array(degrees, float))
    c2w = orbit_array(np.full_like(a, np.deg2rad(15)), a, np.full_like(a, DISTANCE))
    return mesh.render(c2w, FOV, size, light=light)


def test_triangles_match_the_ray_caster() -> None:
    asset = Toybox(3).asset(5)
    ours = render(toybox_mesh(asset), [0, 130], 48, light=True)
    theirs = render_azimuths(asset, [0, 130], 48).rgb
    assert np.abs(ours - theirs).mean() < 0.004 and theirs.std() > 0.02


def test_mesh_without_colours_is_lit(tmp_path: Path) -> None:
    trimesh.creation.icosphere(subdivisions=2, radius=0.5).export(str(tmp_path / "ball.obj"))
    mesh = fit_to_ball(read_mesh(tmp_path / "ball.obj"))
    assert mesh.plain and np.linalg.norm(mesh.corners, axis=-1).max() == pytest.approx(0.8)
    lit, plain = (render(mesh, [0], light=light)[0] for light in (True, False))
    inside = np.abs(plain - DEFAULT_COLOUR).max(-1) < 1e-4
    assert plain[inside].std() < 1e-4 and lit[inside].std() > 0.02
    assert (np.abs(lit[inside] - 0.5) > 0.1).mean() > 0.8, "it differs from the background"


LARGE = "v 0 0 0\nv {0} 0 0\nv 0 {0} 0\nf 1 2 3\n"


@pytest.mark.parametrize(
    ("name", "content", "value"),
    [
        ("empty.obj", b"v 0 0 0\nv 1 0 0\nf 1 2 2\n", ""),
        ("large.obj", LARGE.format("1e100").encode(), "1e+100"),
        ("huge.obj", LARGE.format("1e200").encode(), "1e+200"),
    ],
)
def test_unusable_meshes_are_refused(tmp_path: Path, name: str, content: bytes, value: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(None, tmp_path / name, value) as error:
        read_mesh(tmp_path / name)
    assert isinstance(error.value, EmptyMesh) == (name == "empty.obj") and "\n" not in str(error.value)
