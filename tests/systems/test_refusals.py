"""Options, files and weights that cannot be used: exit code 2 and a line with the key, the values and the remedy."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.support import box_room, tiny_mvadapter, tiny_mvdiffusion
from tests.support.command import refusal
from tests.support.task_server import TINY, prior_folder, tiny_generate, write_config
from tests.support.tiny_mvadapter import GEOMETRY
from threedgen.systems.sample.mesh import MeshFrame
from threedgen.train.task import Task

ADAPTERS = {"rays": None, "mesh": GEOMETRY, "deep": replace(GEOMETRY, fov=40.0)}
ORBIT = {"name": "orbit", "n_view": 2}
PANORAMA = {"name": "panorama", "size": 16, "height": 32}
PATH = {"name": "path", "height": 16, "width": 20, "views": 4, "file": "path.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs, images, texts, meshes and runs."""
    folder = tmp_path_factory.mktemp("refusals")
    for name, settings in ADAPTERS.items():
        prior = tiny_mvadapter.tiny_prior_config(folder / name, settings)
        for task, more in (("sample", {"rig": {"name": "angles"}}), ("texture", {}), ("generate", TINY)):
            write_config(folder / f"{task}-{name}.yaml", more | {"task": task, "threads": 1}, prior=prior)
    for name in ("panorama", "depth"):
        prior = tiny_mvdiffusion.tiny_prior_config(name)
        write_config(folder / f"{name}.yaml", {"task": "sample", "threads": 1, "rig": PANORAMA}, prior=prior)
        shutil.copy(prior["blocks"], folder / f"{name}.safetensors")
    path = {"task": "texture", "threads": 1, "rig": PATH, "mesh": "room.glb", "prompt": "a red house"}
    write_config(folder / "path.yaml", path, prior=tiny_mvdiffusion.tiny_prior_config("depth"))
    write_config(folder / "sides.yaml", {"task": "texture", "threads": 1})
    orbit = {"task": "sample", "threads": 1, "rig": ORBIT, "prompt": "a red dog"}
    write_config(folder / "orbit.yaml", orbit, prior={"weights": str(prior_folder()), "dtype": "fp32"})
    tiny_generate(folder)
    cut = np.full((12, 20, 4), (200, 30, 30, 0), np.uint8)
    cut[3:9, 5:16, 3] = 255
    Image.fromarray(cut).save(folder / "cut.png")
    Image.new("RGB", (8, 8), "white").save(folder / "white.png")
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "notes.png").write_text("not an image")
    (folder / "short.txt").write_text("a dog\n" * 7)
    (folder / "empty.txt").write_text("\n")
    (folder / "bad.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    trimesh.creation.box((0.4, 0.2, 0.8)).export(folder / "box.glb")
    trimesh.PointCloud(np.eye(3)).export(folder / "points.ply")
    box_room.write_glb(folder / "room.glb")
    far = trimesh.Trimesh(box_room.scene().vertices + np.array([5e5, 5e6, 0]), box_room.scene().faces, process=False)
    far.export(folder / "far.obj", digits=8)
    box_room.write_path(folder / "path.json", box_room.look(36, (16, 20)).select(range(9)), MeshFrame("+y", "+z"))
    for task in ("generate", "batch"):
        (folder / f"run-{task}").mkdir()
        (folder / f"run-{task}" / "config.yaml").write_text(f"task: {task}\n")
    return folder


MISTAKES = [  # refused before the model is loaded
    # images of an object
    ("orbit", ["prior.name=stable-diffusion"], ("rig.n_view", "2", "samples=4")),
    ("orbit", ["prior.name=mvadapter"], ("prior.name", "mvadapter", "orbit", "mvdream")),
    ("orbit", ["image=cut.png"], ("image", "orbit")),
    ("sample-rays", [], ("prompt: ",)),
    ("sample-rays", ["image=noise.png"], ("image: ", "noise.png")),
    ("sample-mesh", ["prompt=a dog", "mesh=bad.obj"], ("mesh: ", "bad.obj")),
    # panoramas
    ("panorama", [], ("prompt: ", "prompt=")),
    ("panorama", ["prompts=short.txt"], ("prompts: ", "7", "8", "prompt=")),
    ("panorama", ["prompts=short.txt", "prompt=a dog"], ("prompts: ", "prompt=")),
    ("panorama", ["prompts=empty.txt"], ("prompts: ", "empty.txt")),
    ("panorama", ["prompt=a dog", "rig.views=4"], ("views 4", "views=5")),
    ("panorama", ["prompt=a dog", "image=cut.png"], ("rig.image_fov: ", "67")),
    # textures of rooms
    ("path", ["mesh=null"], ("mesh: ", "rig.scannet")),
    ("path", ["rig.scannet=nowhere", "rig.file=auto"], ("rig.scannet: ", "nowhere")),
    ("path", ["rig.scannet=nowhere"], ("file", "scannet", "both")),
    ("path", ["synchronise=1", "mesh=null", "rig.file=auto", "rig.scannet=."], ("synchronise 1", "mesh")),
    ("path", ["rig.poses=w2c"], ("rig.file: ", "poses=c2w")),
    ("path", ["rig.every=9"], ("rig.poses: ", "1 of 1", "rig.every")),
    ("path", ["mesh=far.obj"], ("mesh: ",)),  # far from the origin
    # textures of objects
    ("sides", [], ("mesh: ",)),
    ("sides", ["mesh=sides.yaml"], ("mesh: ", "sides.yaml", ".glb")),
    ("sides", ["mesh=points.ply"], ("mesh: ", "triangles")),
    ("sides", ["mesh=box.glb", "front=-y"], ("front: ", "-y", "+z")),
    ("sides", ["mesh=box.glb", "views=nowhere"], ("views: ", "nowhere")),
    ("sides", ["mesh=box.glb", "matte=rembg"], ("matte: ", "rembg", "image")),
    ("sides", ["mesh=box.glb", "views=.", "poses=w2c-opencv"], ("poses: ", "w2c-opencv", "views")),
    # objects from an image by a novel-view model
    ("threedim-toybox", [], ("image: ", "image=car.png")),
    ("threedim-toybox", ["image=notes.png"], ("image: ", "notes.png")),
    ("threedim-toybox", ["image=cut.png", "weights=."], ("weights: ", "config.json")),
    ("threedim-toybox", ["image=cut.png", "result.exporters=[splats]"], ("result.exporters",)),
    # objects from text or an image
    ("tiny", ["field.n_features=2"], ("field.n_features", "3")),
    ("tiny", ["warm_start.share=0.9"], ("warm_start.share=0.9", "0.88", "warm_start.share=0.44")),
    ("tiny", ["refine.share=0.6"], ("refine.share=0.6", "2 rounds")),
    ("tiny", ["trainer.accumulate_grad_batches=2"], ("trainer.accumulate_grad_batches=2", "scenes_per_step")),
    ("tiny", ["loss.laplacian={0: 0, 10: 1}"], ("loss.laplacian", "field.name=ngp")),
    ("tiny", ["result.exporters=[nothing]"], ("result.exporters", "nothing")),
    ("tiny", ["prior.weights=nowhere.pt"], ("prior.weights: ", "nowhere.pt")),
    ("tiny", ["march.backend=nerfacc", "--dry-run"], ("march.backend: ", "'nerfacc'", "CUDA")),
    ("tiny", ["--dry-run", "--resume", "run-generate"], ("--dry-run: ", "--resume")),
    ("mvdream-toybox", ["image=white.png"], ("image: ", "white.png")),
    ("quick-toybox", ["prompt=a red dog", "fit.matte=nowhere"], ("fit.matte: ", "nowhere", "toybox-matte")),
    ("generate-rays", ["prior.image=white.png"], ("prior.image: ", "white.png")),
    ("generate-rays", ["prior.image=cut.png", "prior.adapter=null"], ("prior: ", "image", "adapter=")),
    # a run that fits the object to views from its first step, but samples single views
    *(
        ("quick-toybox", ["prompt=a red dog", *words], ("refine.share: ", "prior.name=", "refine.strengths=[]"))
        for words in (
            ["prior.name=stable-diffusion"],
            ["prior.name=deepfloyd"],
            ["prior.name=mvdiffusion"],
            ["prior.name=mvadapter", "prior.adapter=null"],
            ["camera.n_view=1"],
            ["prior.name=stable-diffusion", "stages={a: {}, b: {refine: {strengths: []}}}"],
        )
    ),
    # 3D Gaussians
    ("mvdream-toybox", ["prompt=a dog", "result.exporters=[splats]"], ("result.exporters=[]",)),
    ("gaussians-toybox", ["prompt=a dog", "field.densify=adaptive", "trainer.precision=16-mixed"], ("densify=mcmc",)),
    ("gaussians-toybox", ["prompt=a dog", "material.name=diffuse"], ("needs normals",)),
    ("gaussians-toybox", ["prompt=a dog", "field.max_count=10"], ("max_count",)),
    ("gaussians-toybox", ["prompt=a dog", "start=nowhere"], ("start: ", "config.yaml")),
    ("mvdream-toybox", ["prompt=a dog", "start=points.ply"], ("start: ", "gaussians")),
    # stages
    ("tiny", ["stages.first.trainer.max_stps=3"], ("stages.first", "did you mean 'trainer.max_steps'")),
    ("magic3d-toybox", ["stages.course.size=8"], ("stages.course.size: ", "'coarse'")),
    ("tiny", ["stages={a/b: {}}"], ("letters, digits",)),
    ("tiny", ["stages.first.out=x"], ("stages.first.out", "stages/first")),
    ("tiny", ["stages.first.prior.weights=nowhere.pt"], ("stages.first.prior.weights: ", "nowhere.pt")),
    # a run that changes the object of another one
    ("mvdream-toybox", ["prompt=a dog", "edit=run-generate"], ("edit: ", "edit-toybox")),
    ("edit-toybox", ["prompt=a dog", "edit=nowhere"], ("edit: ", "nowhere")),
    ("edit-toybox", ["prompt=a dog", "edit=run-generate", "start=run-generate"], ("edit: ", "start")),
    ("edit-toybox", ["prompt=a dog", "edit=run-batch"], ("edit: ", "batch")),
]


MISFITS = [  # models that do not fit
    ("sample-rays", ["image=cut.png", "prior.adapter=null"], ("prior.adapter: ",)),
    ("sample-rays", ["prompt=a dog", "mesh=box.glb"], ("prior.adapter: ", "ray")),
    ("sample-rays", ["prompt=a dog", "rig.height=17"], ("rig.height: ", "17 x 16", "2", "16 or 18")),
    ("sample-mesh", ["prompt=a dog"], ("prior.adapter: ", "mesh=")),
    ("sample-mesh", ["prompt=a dog", "mesh=box.glb", "rig.views=[[0, 0]]"], ("rig.views: ", "six", "1")),
    ("texture-deep", ["prompt=a dog", "mesh=box.glb"], ("prior.adapter: ", "40 degrees", "fov=0")),
    ("generate-mesh", [], ("adapter: ", "geometry", "ray")),
    ("panorama", ["prompt=a dog", "rig.size=18"], ("rig.size: ", "4", "16", "20", "18 x 18")),
    ("panorama", ["prompt=a dog", "image=cut.png", "rig.image_fov=67"], ("image: ", "outpaint")),
    ("depth", ["prompt=a dog"], ("prior.weights: ", "mvdiffusion-pano-toybox")),
    ("path", ["prior.blocks=panorama.safetensors"], ("prior.blocks: ", "depth")),
]


@pytest.mark.parametrize(("config", "words", "values"), [*MISTAKES, *MISFITS], ids=lambda value: str(value)[:60])
def test_mistake_is_refused(place, tmp_path, monkeypatch, capsys, config, words, values) -> None:
    monkeypatch.chdir(place)
    if (config, words, values) in MISTAKES:
        monkeypatch.setattr(Task, "load_prior", lambda *words, **how: pytest.fail("the model is loaded"))
    config = f"{config}.yaml" if Path(f"{config}.yaml").exists() else config
    line = refusal(capsys, "--config", config, f"out={tmp_path / 'run'}", *words)
    assert all(value in line for value in values), line
