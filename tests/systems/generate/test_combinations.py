"""Every prior with every distillation and every representation, by names on the toybox's config."""

import itertools
from pathlib import Path

import pytest

from tests.support.small_run import SMALL, small_field
from tests.support.task_server import prior_folder, server
from tests.support.tiny_mvadapter import tiny_prior_config
from tests.support.toy_run import log
from threedgen import folder
from threedgen.config import ConfigError, load, registry
from threedgen.run.metrics import read_summary
from threedgen.systems.batch.jobs import words_of

PRIORS = ("mvdream", "stable-diffusion", "mvadapter")  # priors with embedded weights
KINDS = tuple(itertools.product(("sds", "reconstruction", "vsd"), registry.names("representation")))
SCALES = {"sds": 5, "reconstruction": 3, "vsd": 7.5, "ism": 5, "csd": 5, "sdi": 4, "jsd": 5}
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


def rows() -> list[list[str]]:
    """Return the names in the documentation's table of combinations."""
    text = (folder("configs").parent / "docs" / "experiments" / "methods.md").read_text(encoding="utf-8")
    table = text.partition("## Every prior, loss and representation")[2].partition("\n## ")[0]
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return [row[:3] for row in cells[2:]]


def test_every_combination_has_the_values_of_its_names() -> None:
    names = ("prior", "distillation", "representation")
    for prior, distillation, field in itertools.product(*map(registry.names, names)):
        made = load("mvdream-toybox", words(prior, distillation, field))
        assert (made.prior.name, made.distillation.name, made.field.name) == (prior, distillation, field)
        if field == "gaussians":
            assert made.field.densify == "mcmc" and made.result.exporters == ("splats",)
        else:
            assert made.field.volume.encoding.n_levels == 10 and made.field.volume.width == 32
        assert made.distillation.guidance_scale == SCALES[distillation]
        assert (made.loss.eikonal > 0) == (field == "sdf") and (made.loss.normal_consistency > 0) == (field == "dmtet")


def test_docs_and_batch_list_every_combination() -> None:
    every = [[prior, *kind] for prior in PRIORS for kind in KINDS]
    assert rows() == every
    methods = [words_of(method) for method in load("combinations-toybox").configs]
    assert {method[0] for method in methods} == {"mvdream-toybox"}
    assert [method[1:] for method in methods] == [words(*row) for row in every]


@pytest.mark.parametrize("prior", ["deepfloyd", "mvdiffusion"])
def test_missing_weights_are_refused(prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    made = load("mvdream-toybox", [f"prior.name={prior}", "prompt=a dog"])
    with pytest.raises(ConfigError) as raised:
        made.check()
    assert str(raised.value).startswith("prior") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("prior", "distillation", "field"),
    [
        pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow)
        for row in ((prior, *kind) for prior in PRIORS for kind in KINDS)
    ],
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
