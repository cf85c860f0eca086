"""Every reader of user files, each with a small valid input."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from safetensors.torch import save_file

from tests.fuzz.mutations import NEIGHBOUR
from tests.support import tiny_prior as tiny
from tests.support.asset_folder import write_shard
from tests.support.ball_run import whole_state
from tests.support.example_run import Page, box_glb, example
from tests.support.mesh_files import PLY, SQUARE, TEXTURE, Glb, write_obj
from tests.support.photographs import photographs
from tests.support.posed_photos import write_colmap, write_transforms
from tests.support.task_server import TINY, weights, write_config
from tests.support.tiny_pipelines import lora, single_file
from threedgen import cli
from threedgen.config import ConfigError, load, registry, yaml_text
from threedgen.data import photos
from threedgen.data.assets.shards import Shards
from threedgen.data.coloured_mesh import read_mesh
from threedgen.data.posed.reader import posed_scenes, read_posed
from threedgen.data.srn.reader import open_instance, write_instance
from threedgen.data.srn.scene_files import scenes, split_folder
from threedgen.export.asset import ExportedAsset
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import load_run_field
from threedgen.export.task import save
from threedgen.guidance.options import LoraFile
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import additions, subject_weights
from threedgen.representations.gaussians.points import read_points
from threedgen.representations.march import step_size
from threedgen.representations.volume.render import OccupancyGrid
from threedgen.run import folder as runs
from threedgen.run.folder import run_folder
from threedgen.run.seeding import generator
from threedgen.systems.novel_view.image_to_3d import fit_on_canvas, read_on_white
from threedgen.systems.sample.mesh import MeshFrame, read_source
from threedgen.train import checkpoint_file


class CommandFailure(Exception):
    """Command with an exit code other than 0 (done) and 2 (user error)."""


@dataclass(frozen=True)
class Reader:
    """Reader under test.

    Attributes:
        make: writes a valid input into an empty folder.
        read: reads such a folder and returns the numbers in it.
        damaged: glob of the files to damage.
        cases: number of damaged inputs.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    damaged: str = "**/*"
    cases: int = 40


def command(*args: str) -> None:
    """Run a command in this process. Raises ConfigError with the message of a user error, else CommandFailure."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(list(args))
    if code == ConfigError.exit_code:
        raise ConfigError(stderr.getvalue().strip())
    if code != cli.OK:
        raise CommandFailure(f"exit {code}: {stderr.getvalue().strip()}")


def _make_config(folder: Path) -> None:
    _make_prior(folder)
    tree = TINY | {"prior": {"name": "mvdream", "weights": str(folder / "prior")}, "stages": {}}
    (folder / "base.yaml").write_text(yaml_text.write(tree), encoding="utf-8")
    text = "base: base.yaml\nseed: 3\nsize: {0: 8, 10: 16}\ncamera:\n  n_view: 4\n"
    (folder / "mine.yaml").write_text(text, encoding="utf-8")


def _make_prior(folder: Path) -> None:
    tiny.tiny_prior().save(folder / "prior")
    (folder / "prior" / "SHA256SUMS").unlink()  # a wrong checksum would hide all other errors


def _read_prior(folder: Path, **options: Any) -> Any:
    prior = MVDream.load(str(folder / options.pop("weights", "prior")), dtype="fp32", **options)
    return tiny.output(prior), prior.schedule.alpha_bar


def _make_original(folder: Path) -> None:
    unet = tiny.tiny_unet(block_out_channels=(64, 128), attention_head_dim=(1, 2), sample_size=32)
    parts = SimpleNamespace(unet=unet, vae=tiny.tiny_vae(), text_encoder=tiny.tiny_text_encoder(100))
    torch.save(single_file("sd21", parts), folder / "original.pt")
    tiny.letter_tokenizer().save_pretrained(folder / "clip")


def _read_original(folder: Path) -> Any:
    return _read_prior(folder, weights="original.pt", tokenizer=str(folder / "clip"))


def _make_subject(folder: Path) -> None:
    _make_prior(folder)
    base = MVDream.load(str(folder / "prior"), dtype="fp32")
    state = base.unet.state_dict()
    tuned = {name: value + 0.01 * torch.randn(value.shape, generator=tiny.cpu(1)) for name, value in state.items()}
    card = {"kind": "difference", "identifier": "[v]", "prompt": "a [v] dog"}
    card["base"] = subject_weights.checksum(base.unet, base.text_encoder)
    changes = dict(list(subject_weights.difference(tuned, state).items())[:6])
    subject_weights.write(folder / "subject.safetensors", changes, torch.full((24,), 0.5), card)


def _read_subject(folder: Path) -> Any:
    prior = MVDream.load(str(folder / "prior"), dtype="fp32")
    subject_weights.apply(prior, folder / "subject.safetensors")
    return tiny.output(prior), prior.schedule.alpha_bar


def _make_stopped(folder: Path) -> None:
    """Write a run after 3 of 5 steps."""
    _make_prior(folder)
    prior = {"weights": str(folder / "prior"), "dtype": "fp32"}
    config = write_config(folder / "tiny.yaml", TINY, prior=prior, warm_start={"share": 0}, size=8, scenes_per_step=1)
    command("--config", str(config), f"out={folder / 'run'}", "trainer.max_steps=3")
    (folder / "run" / "checkpoints" / "previous.ckpt").unlink()


def _read_stopped(folder: Path) -> Any:
    command("--resume", str(folder / "run"), "trainer.max_steps=5", "threads=1", "checkpoint.seconds=1000")
    return weights(folder / "run")


def _make_ball(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml_text.write(TINY))
    config = load(folder / "run.yaml")
    (folder / "run.yaml").unlink()
    (folder / "run" / "checkpoints").mkdir(parents=True)
    runs.write_config(folder / "run", config)
    field: Any = registry.build("representation", config.field, generator=generator(config.seed, 0, "field"))
    grid = OccupancyGrid(config.occupancy, config.march.radius, step_size(config.march))
    state = {f"field.{name}": value for name, value in field.state_dict().items()}
    state |= {f"occupancy.{name}": value for name, value in grid.state_dict().items()}
    checkpoint_file.write(whole_state(state, 16), folder / "run" / "checkpoints" / "last.ckpt")


def _read_ball(folder: Path) -> Any:
    source = load_run_field(run_folder(folder / "run"))
    points = torch.rand(50, 3) - 0.5
    return source.view.density(points), source.view.colours(points.numpy()), source.steps + 0.0


def _read_report(folder: Path) -> None:
    command("--config", "report", f"run={folder / 'run'}")
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    Page(page)
    assert not any(mark in page for mark in ("<script>x", "\x1b"))


def _make_asset(folder: Path) -> None:
    (folder / NEIGHBOUR).write_text("years of work")
    (folder / "asset.json").write_text(json.dumps({"name": "mesh", "files": {"mesh.glb": 4, "mesh_LOD1.glb": 4}}))


def _read_asset(folder: Path) -> None:
    try:
        save(ExportedAsset("mesh", {"mesh.glb": b"glTF"}), folder, AssetConfig())
    finally:
        assert (folder / NEIGHBOUR).is_file(), "deleted an unrelated file"


def _make_photos(folder: Path) -> None:
    for k, suffix in enumerate(("png", "jpg", "png")):
        pixels = np.full((32, 32, 3), 255, np.uint8)
        pixels[8:24, 6:26] = np.random.default_rng(k).integers(0, 200, (16, 20, 3))
        Image.fromarray(pixels).save(folder / f"{k}.{suffix}")


def _read_photos(folder: Path) -> Any:
    subjects = photos.read(photos.find([str(folder)]), 16).astype(np.float32)
    return subjects, fit_on_canvas(read_on_white(folder / "0.png"), 16, 16)


def _make_scenes(folder: Path) -> None:
    for name in ("one", "two"):
        write_instance(folder / "cars_test" / name, photographs(6))


def _read_scenes(folder: Path) -> Any:
    found = [open_instance(path) for path in scenes(split_folder(folder, "cars_test"))]
    for instance in found:
        instance.verify()
    views = [instance.views(size=8) for instance in found]
    return [(v.images, v.cameras.c2w, v.cameras.K, v.cameras.rays()[1]) for v in views]


def _make_meshes(folder: Path) -> None:
    """Write a square as glTF, OBJ and PLY with their buffer, materials and textures, as OFF and STL; a box as GLB."""
    (folder / "box.glb").write_bytes(box_glb())
    glb = Glb()
    glb.square(glb.material(glb.texture(uri="a.png"), (0.5, 1, 1, 1)), COLOR_0=glb.accessor(SQUARE))
    Image.fromarray(TEXTURE).save(folder / "a.png")
    (folder / "a.bin").write_bytes(glb.data)
    glb.write(folder / "a.gltf", "a.bin")
    write_obj(folder, "map_Kd a.png\nd 0.5\nmap_d a.png", colours=SQUARE + 1)
    (folder / "square.ply").write_text(PLY.format("a.png"))
    square = trimesh.Trimesh(SQUARE, [[0, 1, 2], [0, 2, 3]], process=False)
    for name in ("a.off", "a.stl"):
        square.export(folder / name)


def _read_meshes(folder: Path) -> Any:
    """Read each mesh as a training asset and without colours; return the renders of the readable ones."""
    found, errors = [], list[ConfigError]()
    for name in ("box.glb", "a.gltf", "square.obj", "square.ply", "a.off", "a.stl"):
        try:
            found.append(read_mesh(folder / name).render(np.eye(4, dtype=np.float32)[None], 0.7, 8))
            found.append(read_source(folder / name, MeshFrame()).vertices)
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return found


def _make_cameras(folder: Path) -> None:
    """Write photos with a transforms.json, a COLMAP model as text, and a binary one."""
    views = photographs(6)
    write_transforms(folder / "0", views)
    for k in (1, 2):
        write_colmap(folder / str(k), views, binary=k == 2)


def _read_cameras(folder: Path) -> Any:
    found = [read_posed(path) for path in posed_scenes(folder)]
    return [(one.matrices, np.array(one.lenses and [lens[:6] for lens in one.lenses])) for one in found]


def _read_shard(folder: Path) -> Any:
    shards = Shards(folder)
    entries = [(shards.metadata(entry)["c2w"], shards.image(entry, 0)) for entry in shards.entries]
    return [(pose, np.asarray(image)) for pose, image in entries]


def _make_lora(folder: Path) -> None:
    _make_prior(folder)
    networks = SimpleNamespace(unet=MVDream.load(str(folder / "prior"), dtype="fp32").unet)
    save_file(lora(networks, "diffusers"), folder / "lora.safetensors")


def _read_lora(folder: Path) -> Any:
    prior = MVDream.load(str(folder / "prior"), dtype="fp32")
    additions.add(prior, [LoraFile(file=str(folder / "lora.safetensors"))], [])
    return tiny.output(prior)


def _make_points(folder: Path) -> None:
    rng = np.random.default_rng(0)
    cloud = trimesh.PointCloud(rng.random((40, 3)), rng.integers(0, 255, (40, 4), np.uint8))
    (folder / "binary.ply").write_bytes(cloud.export(file_type="ply"))
    (folder / "text.ply").write_bytes(cloud.export(file_type="ply", encoding="ascii"))
    np.savetxt(folder / "a.xyz", rng.random((40, 6)))


def _read_points(folder: Path) -> Any:
    return [tuple(read_points(folder / name, 30, 2.0)) for name in ("binary.ply", "text.ply", "a.xyz")]


READERS = {
    "config": Reader(_make_config, lambda at: command("--config", f"{at}/mine.yaml", "--dry-run"), "*.yaml", cases=60),
    "prior folder": Reader(_make_prior, _read_prior, cases=60),
    "prior file": Reader(_make_original, _read_original, "original.pt"),
    "personalisation": Reader(_make_subject, _read_subject, "subject.safetensors"),
    "run to resume": Reader(_make_stopped, _read_stopped, "run/**/*", cases=60),
    "run to export": Reader(_make_ball, _read_ball, cases=60),
    "run to report": Reader(lambda at: example(at / "run"), _read_report, "run/*.*", cases=60),
    "asset.json": Reader(_make_asset, _read_asset, "asset.json", cases=60),
    "photos": Reader(_make_photos, _read_photos, cases=160),
    "SRN scenes": Reader(_make_scenes, _read_scenes, cases=60),
    "meshes with side files": Reader(_make_meshes, _read_meshes, cases=180),
    "camera files": Reader(_make_cameras, _read_cameras, "?/**/*.[jtb]*", cases=60),
    "shards of views": Reader(write_shard, _read_shard),
    "LoRA": Reader(_make_lora, _read_lora, "lora.safetensors", cases=30),
    "point clouds": Reader(_make_points, _read_points, cases=30),
}
