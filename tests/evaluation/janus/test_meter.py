"""The Janus meter: meshes read and photographed, objects glued, classifiers, and its errors on known objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tests.support import janus_stub
from tests.support.tiny_classifiers import tiny_clip
from tests.support.tiny_prior import letter_tokenizer
from threedgen import cli, config
from threedgen.config import ConfigError, registry
from threedgen.data.coloured_mesh import (
    DEFAULT_COLOUR,
    ColouredMesh,
    EmptyMesh,
    Part,
    fit_to_ball,
    read_mesh,
    toybox_mesh,
)
from threedgen.data.toybox.grammar import NOUNS, Spec, held_out, parse_prompt
from threedgen.data.toybox.world import Toybox, build, render_azimuths
from threedgen.evaluation.janus.meter import Meter, view_labels
from threedgen.evaluation.janus.meter_errors import measure
from threedgen.evaluation.janus.options import CLIPSidesConfig, MeterConfig, TruthConfig
from threedgen.evaluation.toybox.corruption import two_fronted
from threedgen.evaluation.toybox.held_out import clear_nouns, held_out_cases, toybox_prompts, without_front
from threedgen.evaluation.toybox.options import FRONT_THRESHOLD
from threedgen.export.files.glb import save_glb
from threedgen.geometry.poses import orbit_array

DISTANCE, FOV = 0.95 / np.tan(np.deg2rad(20)), np.deg2rad(40)


def around(mesh: ColouredMesh, degrees: list[float], size: int = 32, light: bool = False) -> np.ndarray:
    a = np.deg2rad(np.array(degrees, float))
    c2w = orbit_array(np.full_like(a, np.deg2rad(15)), a, np.full_like(a, DISTANCE))
    return mesh.render(c2w, FOV, size, light=light)


def dog() -> ColouredMesh:
    return toybox_mesh(build(Spec("dog", "blue"), np.random.default_rng(0)))


@pytest.fixture(autouse=True)
def stub() -> None:
    janus_stub.register()


# --- prompts -----------------------------------------------------------------------------------------------------


def test_the_toybox_prompts_have_a_front_and_were_never_trained_on() -> None:
    prompts = toybox_prompts(36, 0)
    assert len(set(prompts)) == 36 and prompts == toybox_prompts(36, 0) and not without_front(prompts)
    cases = held_out_cases(36, 0, spread=True, nouns=clear_nouns())
    assert [case.caption for case in cases] == prompts and all(held_out(case.spec) for case in cases)
    assert {case.spec.noun for case in cases} == set(clear_nouns()) and len(clear_nouns()) >= 30
    assert all(NOUNS[word].front for word in clear_nouns())


def test_the_noun_of_a_prompt() -> None:
    assert parse_prompt("a small Blue dog, wearing a red hat") == Spec("dog", "blue")
    assert parse_prompt("a DSLR photo of a white cat on a red chair") == Spec("cat", "white")
    assert parse_prompt("a pink ice cream") == Spec("ice cream", "pink") and parse_prompt("a unicorn") is None
    left = without_front(["a blue ball", "a unicorn", "a cat beside a ball"])
    assert left == {"a blue ball": "ball"}


# --- things ------------------------------------------------------------------------------------------------------


def test_triangles_look_as_the_ray_caster_draws_them() -> None:
    asset = Toybox(3).asset(5)
    ours = around(toybox_mesh(asset), [0, 130], 48, light=True)
    theirs = render_azimuths(asset, [0, 130], 48).rgb
    assert np.abs(ours - theirs).mean() < 0.004 and theirs.std() > 0.02


def test_a_glued_thing_shows_its_front_twice() -> None:
    mesh = dog()
    front, left, back = around(mesh, [0, 90, 180])
    two = two_fronted(mesh)
    again, side, behind = around(two, [0, 90, 180])
    assert np.abs(again - front).mean() < 0.02 < np.abs(back - front).mean()
    assert np.abs(behind - again).mean() < 1e-3
    np.testing.assert_allclose(side[:, ::-1], side, atol=0.35)  # symmetric, but for pixels of its outline
    x = two.corners[..., 0]
    middle = (mesh.corners[..., 0].min() + mesh.corners[..., 0].max()) / 2
    assert x.min() + x.max() == pytest.approx(2 * middle, abs=1e-9) and x.max() == mesh.corners[..., 0].max()


def test_cutting_keeps_the_surface_and_what_it_carries() -> None:
    """A square with a ramp of colour, across the cut: half the area on each side, and the ramp goes on."""
    corners = np.array([[[-1, 0, 0], [1, 0, 0], [1, 0, 2]], [[-1, 0, 0], [1, 0, 2], [-1, 0, 2]]], float)
    ramp = np.repeat((corners[..., :1] + 1) / 2, 3, axis=2)
    halves = two_fronted(ColouredMesh((Part(corners, ramp),)))
    areas = [
        np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum() / 2
        for c in (part.corners for part in halves.parts)
    ]
    assert areas == pytest.approx([2, 2]) and halves.parts[0].corners[..., 0].min() == 0
    kept = halves.parts[0]
    np.testing.assert_allclose(kept.values[..., 0], (kept.corners[..., 0] + 1) / 2, atol=1e-12)


def test_our_own_mesh_comes_back_as_it_was(tmp_path: Path) -> None:
    save_glb(janus_stub.box(), tmp_path / "mesh.glb")
    mesh = read_mesh(tmp_path / "mesh.glb")
    assert not mesh.plain and np.abs(mesh.corners).max() == pytest.approx(0.4)
    colours = around(mesh, [0, 90, 180, 270])[:, 16, 16]
    np.testing.assert_allclose(colours, janus_stub.COLOURS, atol=0.02)


def test_textures_materials_and_places_of_other_peoples_files(tmp_path: Path) -> None:
    """A textured square in front, a red one behind, moved by their nodes; y up and front +z, as glTF has it."""
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float) * 0.5
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = [0, 0, 255]  # the upper half
    image[4:] = [0, 255, 0]
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(image))
    front = trimesh.Trimesh(square, faces, visual=trimesh.visual.TextureVisuals(uv, material=material), process=False)
    red = trimesh.visual.material.PBRMaterial(baseColorFactor=[188, 0, 0, 255])  # 0.5 in light is 188 in sRGB
    back = trimesh.Trimesh(square, faces[:, ::-1], visual=trimesh.visual.TextureVisuals(material=red), process=False)
    scene = trimesh.Scene()
    scene.add_geometry(front, transform=trimesh.transformations.translation_matrix([0, 0, 0.3]))
    scene.add_geometry(back, transform=trimesh.transformations.translation_matrix([0, 0, -0.3]))
    for name in ("a.glb", "a.obj"):
        scene.export(str(tmp_path / name))
        mesh = read_mesh(tmp_path / name)
        assert not mesh.plain and sorted(set(mesh.corners[..., 0].round(3).ravel())) == [-0.3, 0.3]
        views = around(mesh, [0, 180])
        np.testing.assert_allclose(views[0, 11, 16], [0, 0, 1], atol=0.02)
        np.testing.assert_allclose(views[0, 21, 16], [0, 1, 0], atol=0.02)
        assert views[1, 16, 16, 0] > 0.6 and views[1, 16, 16, 1:].max() < 0.02
    flat = read_mesh(tmp_path / "a.glb", up="z")
    assert sorted(set(flat.corners[..., 2].round(3).ravel())) == [-0.3, 0.3]


def test_what_has_no_colour_is_lit(tmp_path: Path) -> None:
    trimesh.creation.icosphere(subdivisions=2, radius=0.5).export(str(tmp_path / "ball.obj"))
    mesh = fit_to_ball(read_mesh(tmp_path / "ball.obj"))
    assert mesh.plain and np.linalg.norm(mesh.corners, axis=-1).max() == pytest.approx(0.8)
    lit, plain = (around(mesh, [0], light=light)[0] for light in (True, False))
    inside = np.abs(plain - DEFAULT_COLOUR).max(-1) < 1e-4
    assert plain[inside].std() < 1e-4 and lit[inside].std() > 0.02
    assert (np.abs(lit[inside] - MeterConfig().background) > 0.1).mean() > 0.8, "it stands out from what is behind it"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "(cannot be read|is empty)"), (b"v 0 0 0\nv 1 0 0\nf 1 2 2\n", "is empty"), (b"\0glTF\1", "cannot|empty")],
)
def test_files_that_hold_nothing_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("nothing.obj", "nothing.glb"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"nothing.*({said}|cannot be read)"):
            read_mesh(path)


def test_files_that_are_damaged_are_told_from_empty_ones_without_words_of_libraries(tmp_path: Path) -> None:
    save_glb(janus_stub.box(), tmp_path / "cut.glb")
    (tmp_path / "cut.glb").write_bytes((tmp_path / "cut.glb").read_bytes()[:200])
    (tmp_path / "photo.ply").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    buffers = [{"byteLength": 4, "uri": "a.bin"}]
    (tmp_path / "apart.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "buffers": buffers}))
    packed = {"asset": {"version": "2.0"}, "extensionsRequired": ["KHR_draco_mesh_compression"]}
    (tmp_path / "packed.gltf").write_text(json.dumps(packed))
    for name, why in (
        ("cut.glb", "it is damaged, or not a GLB file"),
        ("photo.ply", "it is damaged, or not a PLY file"),
        ("apart.gltf", "a.bin is missing"),
        ("packed.gltf", "its triangles are compressed by Draco; save it without compression"),
        ("none.obj", f"{tmp_path / 'none.obj'} is missing"),
    ):
        with pytest.raises(ConfigError) as error:
            read_mesh(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name} cannot be read as a mesh: {why}"
        assert not isinstance(error.value, EmptyMesh)
    trimesh.PointCloud(np.eye(3)).export(str(tmp_path / "points.ply"))
    with pytest.raises(EmptyMesh, match=r"points\.ply is empty: it has no triangle"):
        read_mesh(tmp_path / "points.ply")


# --- classifiers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_gives_the_probabilities_of_its_own_forward_pass(clip: Path) -> None:
    from transformers import CLIPModel

    from threedgen.evaluation.toybox.identity import CLIP_MEAN, CLIP_STD, encoder_input

    classifier = registry.build("view-classifier", CLIPSidesConfig(weights=str(clip), batch=2))
    views = torch.rand(5, 40, 40, 3, generator=torch.Generator().manual_seed(1))
    found = classifier.sides(views, "a dog")
    sides = ("front view", "side view facing left", "back view", "side view facing right")
    sentences = [f"a dog, {side}" for side in sides]
    words = letter_tokenizer()(sentences, padding=True, return_tensors="pt", max_length=48, truncation=True)
    with torch.no_grad():
        wanted = (
            CLIPModel.from_pretrained(clip)
            .eval()(pixel_values=encoder_input(views, 32, CLIP_MEAN, CLIP_STD), **words)
            .logits_per_image.softmax(1)
        )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert (found.argmax(1) != found.argmax(1)[0]).any() or found.std(0).max() > 1e-4
    far = classifier.sides(views, "a dog " * 200)  # cut off, not refused
    assert far.shape == (5, 4) and torch.isfinite(far).all()
    likeness = classifier.likeness(views, ["a dog", "a cat"])
    assert likeness.shape == (5, 2) and likeness.abs().max() <= 1


def test_a_meter_with_clip_looks_at_a_thing(clip: Path) -> None:
    meter = Meter(MeterConfig(classifier=CLIPSidesConfig(weights=str(clip)), size=32))
    reading = meter.classify(dog(), "a dog")
    np.testing.assert_allclose(reading.sides.sum(1), 1, atol=1e-5)
    assert reading.views.shape == (8, 32, 32, 3) and len(view_labels(reading.sides)) == 8
    assert len(meter.likeness(reading.views, ["a dog", "a cat"]) or []) == 2


def test_a_clip_that_is_none_is_named(tmp_path: Path) -> None:
    for weights in (str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(ConfigError, match="meter.classifier.weights: .* cannot be loaded as CLIP"):
            registry.build("view-classifier", CLIPSidesConfig(weights=weights))
    with pytest.raises(ValueError, match="prompt"):
        CLIPSidesConfig(sentences=("a {prompt}", "left", "{prompt} back", "{prompt} right"))


def test_the_probe_knows_the_sides_and_the_noun() -> None:
    meter = Meter(MeterConfig())
    reading = meter.classify(dog(), "a blue dog", light=True)
    result = meter.judge(reading.sides, FRONT_THRESHOLD)
    assert result.fronts == 1 and sum(result.right) >= 7 and view_labels(reading.sides)[0].startswith("front")
    likeness = meter.likeness(reading.views, ["a red car", "a blue dog", "a green fish"])
    assert likeness is not None and int(np.argmax(likeness)) == 1
    assert meter.likeness(reading.views, ["a unicorn"]) is None


# --- errors on known objects -------------------------------------------------------------------------------------


def stub_meter(**options: float | None) -> Meter:
    return Meter(MeterConfig(classifier=janus_stub.StubSidesConfig(), size=24, **options))  # type: ignore[arg-type]


def test_errors_on_files_whose_truth_is_known(tmp_path: Path) -> None:
    """Boxes that are good, and one that has two fronts though it is said to be good: half of the alarms are false."""
    for name, fronts in (("a.glb", 1), ("b.glb", 1), ("c.glb", 2), ("d.glb", 2)):
        save_glb(janus_stub.box(fronts), tmp_path / name)
    found = measure(stub_meter(), TruthConfig(assets=str(tmp_path), objects=10), 0)
    assert (found.rates.alarms.hits, found.rates.alarms.total) == (1, 2)
    assert (found.rates.hits.hits, found.rates.hits.total) == (2, 2) and found.rates.threshold == FRONT_THRESHOLD
    chosen = measure(stub_meter(threshold=None), TruthConfig(assets=str(tmp_path), objects=10), 0)
    assert 0 < chosen.rates.threshold < 1 and len(chosen.known) == 2


def test_the_command_measures_the_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["truth.objects=6", f"out={tmp_path / 'run'}", "threads=1"]
    assert cli.main(["--config", "janus-meter", *words]) == 0
    assert "false alarms" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "meter.json").read_text())
    assert found["false_alarms"]["total"] == found["recall"]["total"] == 6 == len(found["doubts"]["good"])
    assert found["recall"]["hits"] >= 4 > found["false_alarms"]["hits"]
    assert (tmp_path / "run" / "sheet.png").is_file() and "95 % interval" in (tmp_path / "run" / "meter.md").read_text()


def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("assets", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "assets" / "a-blue-dog.ply").write_bytes(b"")
    given = ["--config", "janus-score", f"assets={tmp_path / 'assets'}", "meter.classifier.name=probe"]
    for words, said in (
        (["--config", "janus-meter", f"truth.assets={tmp_path / 'none'}"], "truth.assets: should be a folder"),
        (["--config", "janus-meter", "meter.n_view=4"], "meter.n_view"),
        (["--config", "janus-meter", "meter.threshold=null", "truth.objects=0"], "threshold"),
        (["--config", "janus-score"], "assets: is missing"),
        (["--config", "janus-score", f"assets={tmp_path / 'empty'}"], "no GLB"),
        ([*given, "prompts={a-blue-dgo: a cat}"], "is called 'a-blue-dgo'; did you mean 'a-blue-dog'?"),
    ):
        assert cli.main([*words, f"out={tmp_path / 'run'}"]) == 2
        assert said in capsys.readouterr().err


def test_without_clip_the_probe_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "dog.glb").write_bytes(b"")
    for weights in ([], ["meter.classifier.weights=nowhere/clip"], ["meter.classifier.weights=no such folder"]):
        assert cli.main(["--config", "janus-score", "assets=assets", "out=run", *weights]) == 2
        said = capsys.readouterr().err
        assert (
            said.startswith("meter.classifier.weights: CLIP '") and "meter.classifier.name=probe needs no CLIP" in said
        )
    assert not (tmp_path / "run").exists()
    config.load("janus-score", ["assets=assets", "meter.classifier.name=probe"]).check()
