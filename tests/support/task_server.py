"""Whole commands in the children of fork_server.py, with faults; and the configs of runs of a second."""

import functools
import importlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.fork_server import Server, log
from tests.support.kept_folder import made_once
from tests.support.power_loss import record
from tests.support.storage_faults import inject
from tests.support.waiting import when
from threedgen.run import lock


def tiny(task: str, steps: int, log_every: int = 5, check_every: int = 0, **values: Any) -> dict[str, Any]:
    """Return a config of a run on one thread of a CPU that is saved after each step."""
    trainer = {"max_steps": steps, "log_every_n_steps": log_every, "val_check_interval": check_every}
    trainer["accelerator"] = "cpu"
    return {"task": task, "threads": 1, "trainer": trainer, "checkpoint": {"seconds": 0}, **values}


TINY = tiny(
    "generate", 16, prompt="a red dog",
    field={
        "encoding": {"n_levels": 3, "log2_hashmap_size": 8, "base_resolution": 4},
        "width": 8, "density_blob_scale": 20.0,
    },
    background={"name": "neural"},
    march={"samples": 12, "chunk": 400},  # two to five chunks in a step
    occupancy={"resolution": 8, "interval": 4, "warmup": 8},
    size={"0%": 8, "50%": 12}, scenes_per_step={"0%": 1, "75%": 2}, camera={"n_view": 2},
    preview={"steps": 2}, fit={"rays": 64}, warm_start={"share": 0.2},
    refine={"strengths": [0.6, 0.3], "share": 0.0625, "groups": 2, "steps": 2},
    result={"turntable": {"n_view": 2, "height": 16, "width": 16, "distance": 2.6}, "mesh_resolution": 16},
    export={"enabled": False},
)  # fmt: skip
"""A generate run of a second: everything in it, everything small."""

TINY_BASE = tiny(
    "train-base", 10, image_size=32,
    autoencoder={"channels": [8, 16], "batch": 3, "max_steps": 6}, decoder={"max_steps": 4},
    network={"channels": [16, 32]}, words={"max_steps": 5, "batch": 4},
    training={"batch": 4, "fresh": 2, "first": 16, "pictures": 40},
)  # fmt: skip
TINY_PRIOR = tiny(
    "train-prior", 10, start="base",
    coarse={"max_steps": 4, "sampler_steps": 3, "fusion_steps": 2, "objects": 16},
    training=TINY_BASE["training"] | {"n_view": 2, "two_d": 0.5},
)  # fmt: skip
TINY_THREEDIM = tiny(
    "train-threedim", 10, check_every=5,
    data={"name": "toybox", "scenes": 12, "views": 4, "held_out": 4},
    model={
        "name": "pixels",
        "network": {
            "image_size": 8, "channels": 8, "channel_mult": [1, 2], "emb_channels": 8, "num_res_blocks": 1,
            "attn_resolutions": [4], "attn_heads": 2, "groups": 4, "dropout": 0.1, "origin_degrees": 4,
        },
    },
    training={"batch": 4, "warmup": 16, "ema_half_life": 8, "learning_rate": 1e-2},
)  # fmt: skip
TINY_DREAMBOOTH = tiny(
    "mvdreambooth", 8, log_every=2, check_every=4, prompt="a [v] dog", photos="photos",
    tuning={"batch": 2, "learning_rate": 1e-3, "word_learning_rate": 1e-2}, sheet={"steps": 1},
)  # fmt: skip
TINY_MVADAPTER = tiny(
    "train-mvadapter", 6, log_every=2,
    seed=4,  # draws both sets of views early
    objects={"name": "toybox", "count": 8},
    training={
        "batch": 2, "first": 3, "no_text": 0.5, "view_sets": [[0, 1, 2, 3, 4, 5], [0, 3]], "learning_rate": 0.01,
        "ema": 0.5,
    },
)  # fmt: skip


def child(
    words: list[str],
    hold_at: int | None = None,
    hold_in: str = "",
    nan_from: int | None = None,
    die_in: str = "",
    window: int | None = None,
    power_loss: str = "",
    fault: dict[str, Any] | None = None,
    environment: dict[str, str | None] | None = None,
    descriptors: int | None = None,
    **rest: Any,
) -> int:
    """One command.

    `hold_at`: in this step (of the system `hold_in`, if that is given) write a file "held" and wait for one named
    "go"; `nan_from`: the first step at which the prior answers NaN; `die_in`: a function whose call is the end of
    the process; `window`: the live view is a FakeWindow, whose button is pressed after this step (0: never);
    `power_loss`: a new folder for what a power loss would leave; `fault`: what fails in the working folder (arguments
    of `inject`); `environment`: variables to set, or to unset (None); `descriptors`: the maximum number of open files.
    """
    from threedgen import cli
    from threedgen.guidance.priors.mvdream import MVDream
    from threedgen.systems.dreambooth.system import DreamBoothSystem
    from threedgen.systems.generate.system import GenerateSystem
    from threedgen.systems.novel_view.task import PairSystem
    from threedgen.systems.train.denoising import DenoisingSystem
    from threedgen.toybox.training.autoencoder import AutoencoderSystem, DecoderSystem
    from threedgen.toybox.training.coarse_systems import CoarseSystem
    from threedgen.toybox.training.matte import MatteSystem
    from threedgen.toybox.training.system import PriorSystem
    from threedgen.toybox.training.text_encoder import TextEncoderSystem

    for name, value in (environment or {}).items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    if descriptors:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    now = {"step": -1}
    stages = (AutoencoderSystem, DecoderSystem, TextEncoderSystem, CoarseSystem, MatteSystem)
    for system in (*stages, DenoisingSystem, PriorSystem, DreamBoothSystem, GenerateSystem, PairSystem):

        def step(self: Any, batch: int, index: int, real: Any = system.training_step) -> Any:
            now["step"] = batch
            if batch == hold_at and type(self).__name__.startswith(hold_in):
                Path("held").touch()
                when(Path("go").exists, seconds=600)
            return real(self, batch, index)

        system.training_step = step
    if nan_from is not None:
        denoise = MVDream.denoise
        MVDream.denoise = lambda *a, **k: denoise(*a, **k) * (float("nan") if now["step"] >= nan_from else 1)
    if die_in:
        _instead(die_in, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if window is not None:
        _look_in(window)
    if power_loss:
        record(Path.cwd(), Path(power_loss))
    if fault:
        inject(Path.cwd(), **fault)
    return cli.main(words)


def _look_in(stop_at: int) -> None:
    """A live view without viser, which writes what was seen into the file seen.json."""
    from tests.support.fake_window import FakeWindow
    from threedgen.config import optional as extras
    from threedgen.systems.generate import optimise

    extras.installed = lambda module: True
    optimise.open_window = lambda system: FakeWindow(stop_at, Path("seen.json").resolve())


def _instead(name: str, first: Any) -> None:
    """Lets `first()` happen whenever the function `module.name` is called."""
    module, _, attribute = name.rpartition(".")
    owner = importlib.import_module(module)
    real = getattr(owner, attribute)

    @functools.wraps(real)
    def called(*args: Any, **kwargs: Any) -> Any:
        first()
        return real(*args, **kwargs)

    setattr(owner, attribute, called)


def server() -> Server:
    """Runs commands: options of `child`."""
    return Server("tests.support.task_server:child")


def prior_folder() -> Path:
    from tests.support.tiny_prior import tiny_prior

    return made_once("prior", lambda folder: tiny_prior().save(folder / "prior")) / "prior"


def finished_run(command: Callable[[Path], list[str]]) -> Path:
    """Return the folder of a run that nothing disturbed, of the words that `command` gives for a folder."""

    def make(folder: Path) -> None:
        assert server().run(folder, words=command(folder)) == 0, log(folder)

    return made_once(f"{command.__module__}.{command.__name__}", make) / "run"


def write_config(path: Path, tree: dict[str, Any], **values: Any) -> Path:
    """A config file; `values` replace top-level keys (JSON is YAML)."""
    path.write_text(json.dumps(tree | values))
    return path


def tiny_generate(folder: Path, **values: Any) -> Path:
    """The config of a generate run of a second, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    prior = {"weights": str(prior_folder()), "dtype": "fp32"}
    return write_config(folder / "tiny.yaml", TINY | {"prior": prior}, **values)


def weights(run: Path) -> dict[str, Any]:
    """The state that counts, from the newest checkpoint of a run."""
    from threedgen.train.checkpoint_file import LAST, read

    return read(run / "checkpoints" / LAST)["state_dict"]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    import torch

    assert list(one) == list(other) and len(one) > 3
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


def assert_killed_ends_the_same(
    folder: Path,
    command: Callable[[Path], list[str]],
    kills: Sequence[tuple[int | str, str, str]],
    files: Sequence[str],
) -> None:
    """Assert that a command that is killed in `folder` and resumes leaves the same weights and `files` as one that is
    not.

    Args:
        kills: a step, the start of the name of the system that makes it, and the folder of its checkpoints in the run;
            or the name of a function, with two empty texts.
    """
    run, whole, words = folder / "run", finished_run(command), command(folder)
    for moment, system, stage in kills:
        if isinstance(moment, str):
            assert server().run(folder, words=words, die_in=moment) == -signal.SIGKILL, log(folder)
            continue
        server().killed(folder, words=words, hold_at=moment, hold_in=system)
        assert saved_at(run / stage)
    assert server().run(folder, words=["--resume", "run"]) == 0, log(folder)
    assert_same(weights(run), weights(whole))
    for name in files:
        assert content(run / name) == content(whole / name), name


def content(path: Path) -> Any:
    """Return the bytes of a file; of safetensors without the order of their metadata, which is random."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file but the lock, which every process touches."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != lock.NAME)
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def saved_at(run: Path) -> int:
    """When the newest checkpoint was written; 0 if there is none."""
    try:
        return (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
