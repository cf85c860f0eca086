import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from tests.support.errors import refused
from tests.support.task_server import server, tiny_generate, weights
from tests.support.toy_run import log
from threedgen import folder
from threedgen.config import load, optional, plugins, registry
from threedgen.representations.base import ParameterGroup, Representation
from threedgen.run.metrics import read_metrics, read_summary
from threedgen.systems.generate.sections import OptimizerConfig
from threedgen.systems.generate.system import GenerateSystem
from threedgen.systems.generate.task import check_backends, import_plugin_parts
from threedgen.testing import CAMERAS, check_distillation, check_prior, check_representation, tiny_prior

EXAMPLES = folder("configs").parent / "docs" / "plugins"
SHORT = ["warm_start.share=0", "refine.strengths=[]", "preview.enabled=false", "export.enabled=false", "out=run"]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import an example by name; undo its registration afterwards."""
    monkeypatch.setattr(registry, "TABLE", {kind: dict(names) for kind, names in registry.TABLE.items()})

    def load(name: str) -> ModuleType:
        plugins.load_file(EXAMPLES / f"{name}.py")
        return sys.modules[next(reversed(plugins.LOADED))]

    yield load
    for name in plugins.LOADED:
        sys.modules.pop(name)
    plugins.LOADED.clear()


def command(place: Path, name: str, *words: str, max_steps: int = 4, **sections: Any) -> list[str]:
    """Return a command with an example's plug-in and the tiny config, some of its sections replaced."""
    tiny = str(tiny_generate(place / "tiny", **sections))
    plugin = ["--plugin", str(EXAMPLES / f"{name}.py")]
    return [*plugin, "--config", tiny, *SHORT, f"trainer.max_steps={max_steps}", *words]


def run(place: Path, name: str, *words: str, **options: Any) -> Path:
    """Run an example's plug-in; return the run folder."""
    place.mkdir(exist_ok=True)
    assert server().run(place, words=command(place, name, *words, **options)) == 0, log(place)
    return place / "run"


def test_antithetic_fulfils_the_interface(example: Any) -> None:
    made = example("antithetic")
    options = made.AntitheticConfig(pairs=2)
    check_distillation(lambda prior, rng: made.Antithetic(options, prior.schedule, 10, prior, rng))


def test_loss_on_images_alone_fulfils_the_interface() -> None:
    class Brightness(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = torch.nn.Linear(3, 1).requires_grad_(False)

        def forward(self, latents, denoise, condition, step, generator, views):
            assert self.prompt and len(views.images) == condition.n_view == 6
            return self.frozen(views.images * views.opacity).mean(), {"depth": views.depth.mean()}

    check_distillation(lambda prior, rng: Brightness(), n_view=6)


def test_blobs_fulfil_the_interface(example: Any) -> None:
    blobs = example("blobs")
    options = blobs.BlobsConfig(count=40, interval=2, split_gradient=1e-7, max_count=60)
    check_representation(lambda rng: blobs.Blobs(options, rng))


def test_learning_rate_null_is_that_of_networks() -> None:
    sections = SimpleNamespace(optimizer=OptimizerConfig(name="adam", networks=0.5), field=SimpleNamespace(mine=None))
    system: Any = SimpleNamespace(config=sections)
    assert GenerateSystem.learning_rate(system, ParameterGroup("mine", [], "mine")) == 0.5


def build_field(options: Any, generator: torch.Generator) -> Representation:
    raise NotImplementedError


def test_representation_may_be_built_by_a_function(example: Any, tmp_path: Path) -> None:
    registry.register("representation", "ngp", f"{__name__}:build_field", "threedgen.representations.options:NGPConfig")
    check_backends(load(tiny_generate(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "name", "word"),
    [
        ("metric", "mine", "metrics=[mine]"),
        ("exporter", "mine", "result.exporters=[mine]"),
        ("regulariser", "mine", "loss.mine=2"),
        ("logger", "csv", "seed=0"),
    ],
)
def test_misspelt_part_fails_before_the_work(kind: str, name: str, word: str, example: Any, tmp_path: Path) -> None:
    model = registry.entry(kind, name).config if word == "seed=0" else "threedgen.config:Config"
    registry.register(kind, name, f"{__name__}:no_such_function", model)
    with pytest.raises(AttributeError):
        import_plugin_parts(load(tiny_generate(tmp_path), [word]))


def test_missing_config_model_is_named(example: Any, tmp_path: Path) -> None:
    registry.register("distillation", "mine", f"{__name__}:Mine")
    with refused(None, "distillation.name", "Config"):
        load(tiny_generate(tmp_path), ["distillation.name=mine"])


def test_projected_covariance_matches_samples(example: Any) -> None:
    blobs = example("blobs")
    field = blobs.Blobs(blobs.BlobsConfig(count=1))
    turn, scales = Rotation.from_quat([0.3, -0.4, 0.2, 0.8]), np.array([0.02, 0.01, 0.03])
    points = turn.apply(scales * np.random.default_rng(0).normal(size=(200_000, 3))) + [0.2, -0.1, 0.1]
    camera = CAMERAS.with_size(256, 256).select([0])
    with torch.no_grad():
        field.means.copy_(torch.tensor([[0.2, -0.1, 0.1]]))
        field.log_scales.copy_(torch.from_numpy(scales).log())
        field.rotations.copy_(torch.tensor([[0.8, 0.3, -0.4, 0.2]]))  # w first
        expected = field.covariances(camera)[0] - blobs.BLUR * torch.eye(2)
        pixels, _ = camera.project(torch.from_numpy(points).float())
    torch.testing.assert_close(pixels[0].T.cov(), expected, rtol=0.03, atol=0.02)


def test_solid_colour_fulfils_the_interface(example: Any) -> None:
    solid_colour = example("solid_colour")
    prior = solid_colour.SolidColour(solid_colour.SolidColourConfig())
    check_prior(prior)
    image = prior.sample("a red ball", None, steps=3, guidance_scale=1.0, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(image[0, 0, 0], torch.tensor(solid_colour.COLOURS["red"]), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", registry.names("distillation"))
def test_losses_fulfil_the_interface(name: str) -> None:
    options = registry.config_model("distillation", name)()
    check_distillation(
        lambda prior, rng: registry.build("distillation", options, prior.schedule, 10, prior, rng), step=6
    )


@pytest.mark.parametrize("name", ["ngp", "sdf", "dmtet"])
def test_representations_fulfil_the_interface(name: str) -> None:
    small: dict[str, Any] = {"encoding": {"n_levels": 3, "log2_hashmap_size": 8}, "width": 8}
    values = {"resolution": 6, "paint": small} if name == "dmtet" else small
    options = registry.config_model("representation", name)(**values)
    check_representation(lambda rng: registry.build("representation", options, generator=rng))


def test_tiny_prior_fulfils_the_interface() -> None:
    check_prior(tiny_prior(), n_view=6)


def test_solid_colour_runs_and_encodes_the_prompt_again_after_an_edit(tmp_path: Path) -> None:
    plugin = Path(shutil.copy(EXAMPLES / "solid_colour.py", tmp_path))

    def text() -> Any:
        words = ["prior={name: solid-colour}", "camera.n_view=1", "prompt=a red ball"]
        place = run(tmp_path, str(plugin.with_suffix("")), *words)
        assert read_summary(place)["steps"] == 4
        (place / "summary.json").unlink()  # a stopped run has none
        return load_file(place / "text.safetensors")["text"][0, 0]

    assert torch.equal(text(), torch.tensor([0.8, 0.1, 0.1]) * 2 - 1)
    plugin.write_text(plugin.read_text().replace("(0.8, 0.1, 0.1)", "(0.3, 0.1, 0.1)"))
    assert torch.equal(text(), torch.tensor([0.3, 0.1, 0.1]) * 2 - 1)


LOGGER = """
from threedgen.config.registry import register
from threedgen.config.sections import LoggerConfig

class ExtraConfig(LoggerConfig):
    name: str = "extra"

def extra(options, folder):
    from pytorch_lightning.loggers import CSVLogger
    return CSVLogger(folder, name="extra", version="")

def clash(system, folder):
    return {"files": ["mine.txt"], "seconds": -1, "mine": 3}

register("logger", "extra", f"{__name__}:extra", f"{__name__}:ExtraConfig")
register("exporter", "clash", f"{__name__}:clash")
"""


def test_logger_receives_the_metrics_and_summary_the_entries_of_an_exporter(tmp_path: Path) -> None:
    (tmp_path / "extra.py").write_text(LOGGER)
    tiny = str(tiny_generate(tmp_path))
    words = ["--plugin", "extra.py", "--config", tiny, *SHORT, "logger=extra", "trainer.max_steps=4"]
    assert server().run(tmp_path, words=[*words, "result.exporters=[clash]"]) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["mine"] == 3 and summary["seconds"] > 0 and "mine.txt" in summary["files"]
    lines = (tmp_path / "run" / "extra" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + len(read_metrics(tmp_path / "run")) and "loss" in lines[0].split(",")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_missing_logger_package_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "installed", lambda module: False)
    with refused("logger.name", name):
        load(tiny_generate(tmp_path), [f"logger={name}"]).check()


def test_two_inputs_logs_terms_images_metrics_and_files(tmp_path: Path) -> None:
    names = ["metrics=[mean_radius]", "result.exporters=[depth-maps]", "trainer.val_check_interval=2"]
    place = run(tmp_path, "two_inputs", "system={name: two-inputs, image_interval: 2}", *names)
    lines = read_metrics(place)
    assert all(line["normals"] > 0 for line in lines) and lines[-1]["mean_radius"] > 0
    assert read_summary(place)["metrics"] == {"mean_radius": pytest.approx(lines[-1]["mean_radius"])}
    assert [path.name for path in sorted((place / "images").iterdir())] == ["normals-000000.png", "normals-000002.png"]
    assert 'alt="normals-000002"' in (place / "report.html").read_text()
    assert read_summary(place)["depth_maps"] == 4 and (place / "depth.npz").exists()


BLOBS = {"name": "blobs", "count": 30, "interval": 3, "split_gradient": 1e-9, "max_count": 100}


def test_blobs_resume_exactly_across_a_densification(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "blobs", max_steps=8, field=BLOBS)
    (tmp_path / "half").mkdir()
    words = command(tmp_path / "half", "blobs", "checkpoint.seconds=1000", max_steps=8, field=BLOBS)
    code = server().signalled(tmp_path / "half", signal.SIGTERM, words=words, hold_at=4)
    assert code == 143, log(tmp_path / "half")
    half = weights(tmp_path / "half" / "run")
    resume = ["--plugin", str(EXAMPLES / "blobs.py"), "--resume", "run"]
    assert server().run(tmp_path / "half", words=resume) == 0, log(tmp_path / "half")
    one, other = weights(whole), weights(tmp_path / "half" / "run")
    assert 30 < len(half["field.means"]) < len(one["field.means"])
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "mesh.glb").exists() == ("triangles" in read_summary(whole))
