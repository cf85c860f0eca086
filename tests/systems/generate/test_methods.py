import itertools
from pathlib import Path

import pytest

from tests.support.small_run import SMALL, small_field
from tests.support.task_server import prior_folder, server
from tests.support.tiny_methods import folders
from tests.support.tiny_mvadapter import tiny_prior_config
from tests.support.toy_run import log
from threedgen import cli, config
from threedgen.config import load, registry
from threedgen.run.metrics import read_summary

AROUND = [*SMALL, "trainer.max_steps=10", "trainer.precision=32-true"]
WORDS = [*AROUND, *small_field("field", "encoding.per_level_scale=2")]  # small sizes for the configs
EARLY = ["material.ambient_only_steps=5"]


def small_mesh(first: str) -> list[str]:
    """Return small sizes for a config with a first stage of this name and a mesh at the end."""
    stage, more = f"stages.{first}", ("encoding.per_level_scale=2", "density_blob_scale=30")
    inside = [*small_field("field.paint", *more), *small_field(f"{stage}.field", *more)]
    sizes = ["field.resolution=10", "field.level=auto", "size=12", f"{stage}.size=12", f"{stage}.trainer.max_steps=6"]
    return [*inside, *AROUND, *sizes]


STAGED: dict[str, tuple[str, str, list[str]]] = {
    "magic3d-if-sd": ("if", "sd", small_mesh("coarse")),
    "prolificdreamer-toybox": ("toybox", "toybox", [*small_mesh("field"), "stages.shape.trainer.max_steps=4"]),
}  # fmt: skip
"""Config -> weights of the first and of the last stage, small sizes."""
SD = ["size=12", "field.density_blob_scale=40", "field.levels={0: 1, 5: 3}", *EARLY]
METHODS: dict[str, tuple[str, list[str]]] = {
    "dreamfusion-toybox": ("toybox", ["size=12", "field.density_blob_scale=20", *EARLY]),
    "text2mesh-toybox": ("toybox", ["size=12", *EARLY]),
    "dreamfusion-if": ("if", SD),
    "sdi-sd21": ("sd", [*SD, "trainer.max_steps=20"]),
}
"""Config -> weights, small sizes and early steps."""


def steps(words: list[str], key: str = "trainer.max_steps") -> int:
    return next(int(word.partition("=")[2]) for word in reversed(words) if word.startswith(f"{key}="))


def weights(kind: str) -> Path:
    return prior_folder() if kind == "toybox" else folders() / kind


@pytest.mark.parametrize("name", METHODS)
def test_method_runs_to_a_mesh(name: str, tmp_path: Path) -> None:
    kind, more = METHODS[name]
    words = ["--config", name, "prompt=a red dog", "out=run", f"prior.weights={weights(kind)}", *WORDS, *more]
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and summary["steps"] == steps(words) and summary["triangles"] > 10
    assert all((tmp_path / "run" / file).stat().st_size > 100 for file in ("mesh.glb", "turntable.mp4", "views.png"))
    assert not (tmp_path / "run" / "preview.png").exists(), "a prior without cameras draws no views of one object"


@pytest.mark.parametrize("name", STAGED)
def test_staged_method_runs_to_a_mesh(name: str, tmp_path: Path) -> None:
    first, last, more = STAGED[name]
    words = ["--config", name, "prompt=a red dog", "out=run", f"prior.weights={weights(last)}", *more]
    if first != last:
        words += [f"stages.coarse.prior.weights={weights(first)}", "stages.coarse.prior.dtype=fp32"]
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    before = [read_summary(place) for place in sorted((tmp_path / "run" / "stages").iterdir())]
    summary = read_summary(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("finished", steps(words))
    assert before[0]["steps"] == steps(words, f"stages.{next(iter(config.load(name).stages))}.trainer.max_steps")
    assert len(before) == len(config.load(name).stages) and all(one["triangles"] > 10 for one in [*before, summary])
    assert all((tmp_path / "run" / file).stat().st_size > 100 for file in ("mesh.glb", "turntable.mp4", "views.png"))


@pytest.mark.parametrize("name", ["prolificdreamer-toybox", "dreamfusion-if"])
def test_dry_run_estimates_the_memory(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, more = STAGED[name][1:] if name in STAGED else (METHODS[name][0], [*WORDS, *METHODS[name][1]])
    assert cli.main(["--config", name, "prompt=a dog", "--dry-run", f"prior.weights={weights(kind)}", *more]) == 0
    output = capsys.readouterr().out
    assert output.count("would generate: a dog\n") == 1 and str(weights(kind)) in output
    assert "step at " in output and "GB at most (loading" in output
    assert ("stages: field, shape, " in output) == ("\nsteps of shape: " in output) == (name in STAGED)


PRIORS = ("mvdream", "stable-diffusion", "mvadapter")  # priors with embedded weights
LOSSES = ("sds", "reconstruction", "vsd")
PAIRS = itertools.product(range(3), enumerate(registry.names("representation")))
ROWS = [(PRIORS[k], LOSSES[(k + n) % 3], field) for k, (n, field) in PAIRS]  # every two names together
QUICK = [
    ("mvdream", "sds", "sdf"), ("mvdream", "vsd", "ngp"), ("mvdream", "reconstruction", "dmtet"),
    ("stable-diffusion", "reconstruction", "ngp"),
]  # fmt: skip
"""With test_methods.py and test_mvadapter.py, every name at least once; the others are slow together."""


def words(prior: str, distillation: str, field: str) -> list[str]:
    return [f"prior.name={prior}", f"distillation.name={distillation}", f"field.name={field}"]


def paint(field: str) -> list[str]:
    if field == "gaussians":
        return ["field.count=60", "field.opacity=0.6"]
    dense = ["field.density_blob_scale=20"] * (field == "ngp") + ["field.resolution=10"] * (field == "dmtet")
    return [*small_field("field.paint" if field == "dmtet" else "field"), *dense]


def test_every_combination_has_the_values_of_its_names() -> None:
    names = ("prior", "distillation", "representation")
    for prior, distillation, field in itertools.product(*map(registry.names, names)):
        made = load("mvdream-toybox", words(prior, distillation, field))
        assert (made.prior.name, made.distillation.name, made.field.name) == (prior, distillation, field)
        assert (made.loss.eikonal > 0) == (field == "sdf") and (made.loss.normal_consistency > 0) == (field == "dmtet")


@pytest.mark.parametrize(
    ("prior", "distillation", "field"),
    [*QUICK, *(pytest.param(*row, marks=pytest.mark.slow) for row in ROWS if row not in QUICK)],
)
def test_combination_runs(prior: str, distillation: str, field: str, tmp_path: Path) -> None:
    files = {"weights": str(prior_folder())}
    if prior == "mvadapter":
        options = tiny_prior_config(tmp_path / "prior")
        files = {key: options[key] for key in ("weights", "adapter")} | {"guess": "null"}
    weights = [f"prior.{key}={value}" for key, value in files.items()]
    chosen = ["--config", "mvdream-toybox", *words(prior, distillation, field), "prompt=a red dog", "out=run"]
    sizes = [*SMALL, *paint(field), "size=12", "camera.n_view=2", "preview.steps=2", "trainer.max_steps=2"]
    assert server().run(tmp_path, words=[*chosen, *weights, *sizes]) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("finished", 2) and summary["triangles"] > 10
