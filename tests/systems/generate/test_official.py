import functools
import hashlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.kept_folder import kept_folder
from tests.support.official import NAMES, Kind, official_checkpoint
from tests.support.small_run import SMALL, small_field
from tests.support.task_server import server
from tests.support.tiny_prior import coarse_prior
from tests.support.toy_run import log
from threedgen import cli
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.run.metrics import read_summary

PRIOR = ["prior.tokenizer=clip", "prior.image_size=64"]
WORDS = [
    *PRIOR, *SMALL, *small_field("field", "encoding.per_level_scale=2", "density_blob_scale=20"), "size={0: 8, 5: 16}",
    "scenes_per_step={0: 2, 5: 1}", "preview.steps=2", "trainer.max_steps=10", "trainer.precision=32-true",
]  # fmt: skip
"""Small sizes; steps are divided by 1000."""
SHADING = ["material.ambient_only_steps=5", "loss.orientation={0: 10, 5: 1000}"]


@functools.cache
def folder(kind: Kind) -> Path:
    place = kept_folder()
    official_checkpoint(place, kind)
    return place


@pytest.mark.parametrize("name", ["sd21", "coarse"])
def test_meta_networks_are_those_of_the_prior(name: Any, tmp_path: Path) -> None:
    if name == "sd21":
        path = folder(name) / NAMES[name]
        prior = MVDream.load(str(path), dtype="fp32", tokenizer=str(folder(name) / "clip"), image_size=64)
    else:
        path, prior = tmp_path, coarse_prior()
        prior.save(path)
    found = meta_networks(str(path))
    for seen, loaded in ((found.unet, prior.unet), (found.vae, prior.vae)):
        shapes = {key: tensor.shape for key, tensor in seen.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in loaded.state_dict().items()}
        assert {parameter.device.type for parameter in seen.parameters()} == {"meta"}
    for count in (found.parameters, found.kept):
        assert count == sum(p.numel() for network in prior.networks.values() for p in network.parameters())
        prior.free_text_encoder()


@pytest.mark.parametrize(
    ("name", "kind", "more"), [("mvdream-sd21", "sd21", []), ("mvdream-sd21-shading", "sd21", SHADING)]
)
def test_config_runs_to_a_mesh(name: str, kind: Kind, more: list[str]) -> None:
    """The checkpoint is in the working directory under its released name."""
    place, run = folder(kind), folder(kind) / name
    words = ["--config", name, "prompt=a dog", f"out={name}", *WORDS, *more]
    assert server().run(place, words=words) == 0, log(place)
    summary = read_summary(run)
    assert summary["status"] == "finished" and summary["steps"] == 10 and summary["triangles"] > 10
    assert all((run / file).stat().st_size > 100 for file in ("mesh.glb", "turntable.mp4", "views.png"))
    with Image.open(run / "preview.png") as image:
        assert image.size == (4 * 64 + 5 * 2, 64 + 2 * 2)
    content = (place / NAMES[kind]).read_bytes()
    digest, output = hashlib.sha256(content).hexdigest(), log(place)
    assert f"weights: {NAMES[kind]} ({len(content) / 1e9:.2f} GB, SHA-256 {digest})" in output
    assert output.index(digest) < output.index("distilling at 8 px"), "before anything else"


@pytest.mark.usefixtures("no_hub")
def test_missing_tokenizer_is_refused_before_the_weights(tmp_path: Path, monkeypatch, capsys) -> None:
    """The weights are neither hashed nor read, and no folder is left."""
    read: list[Path] = []
    monkeypatch.setattr("threedgen.guidance.weights.files.sha256", lambda path: read.append(path) or "")
    monkeypatch.setattr("threedgen.guidance.weights.files.read_tensors", lambda path, *more: read.append(path) or {})
    monkeypatch.chdir(tmp_path)
    words = ["--config", "mvdream-sd21", "prompt=a dog", f"prior.weights={folder('sd21') / NAMES['sd21']}", "out=run"]
    for more in ([], ["--dry-run"]):
        assert cli.main([*words, *more]) == 2
        assert capsys.readouterr().err.startswith("prior.tokenizer: ")
    assert read == [] and not (tmp_path / "run").exists()
