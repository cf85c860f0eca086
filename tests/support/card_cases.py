"""Steps of all configs for a GPU on a simulated one (card.py), with small networks."""

import json
from pathlib import Path
from typing import Any

from tests.support import box_room
from tests.support.fork_server import Server, log
from tests.support.nose_box import write_mesh
from tests.support.small_run import small_field
from tests.support.task_server import TINY_THREEDIM, prior_folder
from tests.support.tiny_imagedream import imagedream_file
from tests.support.tiny_methods import folders
from tests.support.tiny_mvadapter import GEOMETRY, adapter_base, awaken, tiny_prior_config
from tests.support.tiny_mvdiffusion import tiny_prior_config as mvdiffusion_prior
from tests.support.tiny_sdxl import tiny_sdxl
from tests.support.tiny_trainings import dreambooth_config
from tests.systems.generate.test_mvadapter import reference_image
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet, AdapterSettings
from threedgen.guidance.priors.mvadapter.weights import save_adapter
from threedgen.systems.sample.mesh import MeshFrame

SMALL = ["threads=1", "prior.dtype=bf16", "march.samples=24", "occupancy.resolution=8", "trainer.accelerator=cpu"]
SMALL += ["march.chunk=null"]
LEVELS, SIZES = "encoding.per_level_scale=2", ["size={0: 8, 5: 16}", "scenes_per_step={0: 2, 5: 1}"]
MVDREAM = [*SMALL, *small_field("field", LEVELS), *SIZES]
SHADED = ["material.ambient_only_steps=5", "material.diffuse_probability=1"]
ORIENTED = [*MVDREAM, *SHADED, "loss.orientation={0: 10, 5: 1000}"]
CLASSIC = [*SMALL, *small_field("field", LEVELS), "size=12", "field.levels={0: 1, 5: 3}", *SHADED]
MESH = [*SMALL, *small_field("field.paint", LEVELS), "size=12", "field.resolution=8"]
VSD = [*MESH, *small_field("stages.field.field", LEVELS), "stages.field.size=12"]
VSD += ["stages.field.camera.distance_range=[1.5,1.6]"]
COARSE = [*MESH, *small_field("stages.coarse.field", LEVELS), "stages.coarse.size=12"]
GAUSSIANS = [*SMALL, "field.count=60", "size=12", "scenes_per_step=1"]
Case = tuple[str, list[str], list[int], int]
STEPS: dict[str, Case] = {
    "mvdream-sd21": ("toybox", [*MVDREAM], [0, 1, 2], 3),
    "mvdream-sd21, 256 px": ("toybox", [*MVDREAM], [0, 6], 3),
    "mvdream-sd21, chunks": ("toybox", [*MVDREAM, "march.chunk=500"], [0, 6], 4),
    "mvdream-sd21, groups": ("toybox", [*MVDREAM, "march.chunk=20"], [0, 6], 6),  # one march, several groups
    "mvdream-sd21, occupancy": ("toybox", [*MVDREAM, "occupancy.warmup=8"], [0, 272], 5),
    "mvdream-sd15": ("toybox", [*MVDREAM], [0, 6], 3),
    "mvdream-sd21-shading": ("toybox", ORIENTED, [0, 6], 3),
    "imagedream-sd21": ("imagedream", [*ORIENTED, "image=car.png", "prior.image_size=16"], [0, 6], 3),
    # 901 of 1500 steps: with the distortion loss
    "image-to-3d-sdxl": ("sdxl", [*MVDREAM[:-2], "image=car.png", "preview.steps=1"], [0, 901], 3),
    "sds-sd": ("sd", CLASSIC, [0, 6], 3),
    "dreamfusion-if": ("if", CLASSIC, [0, 6], 3),
    "text2mesh-if": ("if", CLASSIC, [0, 6], 3),
    "prolificdreamer-sd, field": ("sd", VSD, [0, 6], 3),
    "prolificdreamer-sd, shape": ("sd", VSD, [0, 6], 24),
    "prolificdreamer-sd": ("sd", VSD, [0, 6], 24),
    "magic3d-if-sd": ("sd", COARSE, [0, 6], 24),
    "csd-sd21, coarse": ("sd", COARSE, [0, 6], 3),
    "csd-sd21": ("sd", COARSE, [0, 6], 24),
    "sdi-sd21": ("sd", CLASSIC, [0, 6], 4),  # the inversion reads its timesteps
    # the second of four rounds: the renders are resampled, then the texture of the mesh is fitted to the samples
    "dreamgaussian-sd21": ("sd", [*MESH, "refine.steps=2", "refine.groups=2"], [50, 51], 15),
    "luciddreamer-sd21": ("sd", GAUSSIANS, [0, 6], 3),
    "mvdream-gaussians-sd21": ("toybox", GAUSSIANS, [0, 6], 3),
}
"""Name (config, stage or note) -> weights, words, steps of which the last is counted, number of synchronisations."""
TINY_OBJECTS, TRAINER = "objects={name: toybox, count: 4}", ["threads=1", "trainer.accelerator=cpu"]
THREEDIM = [f"{name}={json.dumps(TINY_THREEDIM[name])}" for name in ("data", "model")]
PANORAMA = ["rig.size=16", "rig.height=32", "rig.film={frames: 1, height: 16, width: 20}", "rig.views=5"]
DREAMBOOTH = [*TRAINER, "prompt=a [v] dog", "photos=photos", "tuning.batch=2", "sheet.steps=1"]
PATH = ["rig.height=16", "rig.width=20", "rig.views=4"]
SIDES = ["mesh=a.glb", "rig.size=64", "texture=64"]
COMMANDS: dict[str, tuple[str, list[str], int]] = {
    "preview-mvdream-sd21": ("toybox", ["steps=4"], 0),  # the CUDA graph is captured in the third
    "mvadapter-sd21": ("mvadapter", [], 0),
    "mvadapter-sdxl": ("sdxl", ["image=car.png"], 0),
    "mvdiffusion-pano-sd21": ("panorama", PANORAMA, 0),
    "mvdiffusion-outpaint-sd2": ("outpaint", [*PANORAMA, "image=car.png", "rig.image_fov=90"], 0),
    "mvdiffusion-depth-sd2": ("depth", ["mesh=room.glb", "rig.file=path.json", "texture=64", *PATH], 0),
    "texture-sd21": ("geometry", SIDES, 0),
    "texture-sdxl": ("geometry", SIDES, 0),
    "mvdreambooth-sd21": ("toybox", DREAMBOOTH, 1),
    "mvdreambooth-sd21, lora": ("toybox", [*DREAMBOOTH, "tuning.preservation=lora"], 1),
    "threedim-srn-cars": ("", [*TRAINER, *THREEDIM, "training.batch=4"], 1),
    "train-mvadapter-sd21": ("start", [*TRAINER, TINY_OBJECTS], 1),
    "train-mvadapter-sdxl": ("start-sdxl", [*TRAINER, TINY_OBJECTS], 1),
}
"""Name (config or config, note) -> weights, words, number of synchronisations of a denoising or training step."""


def prior_words(place: Path) -> dict[str, list[str]]:
    """Return the words that select the weights of each kind."""
    toybox, sdxl = prior_folder(), place / "sdxl"
    tiny_sdxl(sdxl)
    model = MVAdapter.load(str(sdxl), dtype="fp32")
    adapted = AdaptedUNet(model.unet, model.factor, AdapterSettings(), ("mv", "ref"))
    awaken(adapted)
    save_adapter(place / "sdxl.safetensors", adapted)
    imagedream_file(place)
    found = {
        "toybox": {"weights": toybox},
        "imagedream": {"weights": place / "sd-v2.1-base-4view-ipmv.pt", "tokenizer": place / "clip"},
        "sdxl": {"weights": sdxl, "adapter": place / "sdxl.safetensors", "image_size": 16},
        "mvadapter": tiny_prior_config(place / "rays"),
        "geometry": tiny_prior_config(place / "sides", GEOMETRY),
        **{name: {"weights": folders() / name} for name in ("sd", "if")},
        **{name: mvdiffusion_prior(name) for name in ("panorama", "outpaint", "depth")},
    }
    kept = {"weights", "adapter", "blocks", "tokenizer", "image_size"}
    words = {name: [f"prior.{k}={v}" for k, v in part.items() if k in kept] for name, part in found.items()}
    starts = {"start": adapter_base(), "start-sdxl": sdxl}
    return words | {"": []} | {name: [f"start={path}", "image_size=16"] for name, path in starts.items()}


def results(place: Path) -> dict[str, dict[str, Any]]:
    """Run all cases in one process, in the folder `place`; return what `card_runs.main` writes, by case."""
    cases = dict[str, dict[str, Any]]()
    words = prior_words(place)
    reference_image(place / "car.png")
    dreambooth_config(place)
    write_mesh(place / "a.glb")
    box_room.write_glb(place / "room.glb")
    box_room.write_path(place / "path.json", box_room.look(36, (16, 20)).select(range(4)), MeshFrame("+y", "+z"))
    for name, (weights, more, numbers, _) in STEPS.items():
        config, _, note = name.partition(", ")
        stage = note if note in ("field", "shape", "coarse") else None
        at = "stages.coarse." if stage == "coarse" else ""
        place_of = [f"{at}{word}" for word in words[weights]]
        cases[name] = {"config": config, "words": [*more, *place_of], "steps": numbers, "stage": stage}
        cases[name]["image"] = config == "image-to-3d-sdxl"
    for name, (weights, more, _) in COMMANDS.items():
        given = ["--config", name.partition(", ")[0], f"out=run-{name}", *words[weights], *more]
        if TRAINER[1] not in more:
            given[3:3] = ["steps=2", "threads=1", "prior.dtype=bf16", "prompt=a red dog"]
        cases[name] = {"words": given}
    assert Server("tests.support.card_runs:main").run(place, cases=cases) == 0, log(place)[-3000:]
    return json.loads((place / "steps.json").read_text())
