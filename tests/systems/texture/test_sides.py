import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks.glb_check import Expected, check_glb
from tests.support import box_room, command
from tests.support.errors import refused
from tests.support.example_run import Page, decoded
from tests.support.nose_box import nose_box, write_mesh
from tests.support.task_server import write_config
from tests.support.tiny_mvadapter import GEOMETRY, tiny_prior_config
from threedgen import cli
from threedgen.geometry.images import write_png
from threedgen.systems.sample.mesh import SourceMesh, six_sides
from threedgen.systems.sample.options import SIDES
from threedgen.systems.texture.mesh_views import read_sides


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mesh(tmp_path / "a.glb")


def write_views(folder: Path, size: int = 64) -> None:
    mesh = SourceMesh(np.asarray(nose_box().vertices, np.float32), np.asarray(nose_box().faces))
    for side, view in zip(SIDES, box_room.truth(mesh, six_sides(size)), strict=True):
        write_png(folder / f"{side}.png", view)


def run(capsys: pytest.CaptureFixture[str], *words: str, config: str = "views.yaml") -> tuple[int, str, str]:
    write_config(Path("views.yaml"), {"task": "texture"})
    return command.ask(capsys, "--config", config, "threads=1", "texture=128", "rig.size=64", *words)


def test_given_sides_are_projected_and_need_no_weights(tmp_path: Path, capsys) -> None:
    code, out, err = run(capsys, "mesh=a.glb", "out=bare")
    assert code == 0 and out.splitlines()[-1] == str(Path("bare", "preview.png")), err
    assert len(list(Path("bare", "maps").rglob("*.png"))) == 12
    write_views(tmp_path / "sides")
    code, out, err = run(capsys, "mesh=a.glb", "views=sides", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "textured.glb")), err
    summary = json.loads(Path("run", "summary.json").read_text())
    assert summary["psnr_of_views"] > 28 and summary["texels_seen"] > 0.7
    data = Path("run", "textured.glb").read_bytes()
    assert not [found for found in check_glb(data, Expected(24, 128, scene=True)) if found.severity == "error"]
    page = Page(Path("run", "report.html").read_text(encoding="utf-8"))
    images = {image["alt"]: decoded(image["src"]) for tag, image in page.attributes if tag == "img"}
    files = {"Before": "before", "After": "after", "Mesh": "preview", "Images": "views", "Texture": "texture"}
    assert images == {label: Path("run", f"{name}.png").read_bytes() for label, name in files.items()}
    assert page.decoded("mesh") == data and page.texts["h1"] == ["a"]
    assert images["Before"] != images["After"]
    found = trimesh.load(tmp_path / "run" / "textured.glb", process=False, force="mesh")
    np.testing.assert_allclose(found.bounds, trimesh.load(tmp_path / "a.glb", force="mesh").bounds, atol=1e-5)
    code, out, _ = run(capsys, "mesh=a.glb", "prior.weights=nowhere", "views=sides", "--dry-run")
    assert code == 0 and "would run texture" in out and "weights" not in out
    code, _, err = run(capsys, "mesh=a.glb", "views=.", "--dry-run")  # neither sides nor poses
    assert code == 2 and err.startswith("views: ") and "front.png" in err and "transforms.json" in err


@pytest.mark.parametrize("first", [12, 24])
def test_reversed_parts_are_double_sided(tmp_path: Path, capsys: pytest.CaptureFixture[str], first: int) -> None:
    mesh = nose_box()
    mesh.faces[first:] = mesh.faces[first:, ::-1]
    write_mesh(tmp_path / "a.glb", mesh)
    write_views(tmp_path / "sides")
    assert run(capsys, "mesh=a.glb", "views=sides", "out=run")[0] == 0
    material = trimesh.load("run/textured.glb", force="mesh").visual.material
    assert bool(material.doubleSided) is (first < 24)


def test_unusable_sides_are_refused(tmp_path: Path) -> None:
    write_views(tmp_path, 16)
    Image.fromarray(np.full((16, 16, 4), 128, np.uint8)).save(tmp_path / "left.png")
    sides = read_sides(tmp_path)
    assert sides.images.shape == (6, 16, 16, 3) and sides.masks is not None
    assert sides.masks[3].max() < 0.6 and sides.masks[0].min() == 1  # transparent pixels are not the object
    write_png(tmp_path / "top.png", np.zeros((32, 64, 3)))
    with refused("views", "top 64 x 32"):
        read_sides(tmp_path)
    (tmp_path / "top.png").unlink()
    with refused("views", "top.png"):
        read_sides(tmp_path)


def test_sides_are_sampled_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that lost its mesh makes it again from the same sides; so does one that is given them."""
    prior = tiny_prior_config(tmp_path / "prior", GEOMETRY)
    words = ["mesh=a.glb", *(f"prior.{name}={value}" for name, value in prior.items()), "steps=2"]
    code, out, err = run(capsys, *words, "prompt=a red dog", "synchronise=2", "out=run", config="texture-sd21")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "textured.glb")), err
    assert {path.stem for path in Path("run", "views").iterdir()} == set(SIDES)
    first, kept = Path("run", "texture.png").read_bytes(), Path("run", "views.safetensors")
    sampled_at = kept.stat().st_mtime_ns
    Path("run", "textured.glb").unlink()
    assert cli.main(["--resume", "run"]) == 0
    assert kept.stat().st_mtime_ns == sampled_at and Path("run", "texture.png").read_bytes() == first
    views = Path("run", "views", "front.png").read_bytes()
    trimesh.creation.icosphere(2).export("a.glb")  # another mesh in the same file: its sides are sampled again
    Path("run", "textured.glb").unlink()
    assert cli.main(["--resume", "run"]) == 0 and Path("run", "views", "front.png").read_bytes() != views
    capsys.readouterr()
    assert run(capsys, "mesh=a.glb", "views=run/views", "out=given")[0] == 0
    code, _, err = run(capsys, *words, "prompt=a red dog", "views=run/views", "out=both")
    assert code == 2 and err.startswith("views: ")
    code, _, err = run(capsys, "mesh=a.glb", "prompt=a red dog", "out=nobody")
    assert code == 2 and err.startswith("prior.adapter: ")
