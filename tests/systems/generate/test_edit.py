import shutil
from pathlib import Path

import pytest
import torch

from tests.support.errors import refused
from tests.support.tiny_prior import coarse_prior, tiny_prior
from threedgen import config
from threedgen.geometry.rigs import Rig, ring_rig
from threedgen.guidance.completion import KnownViews, known_views
from threedgen.guidance.guidance import Condition
from threedgen.guidance.priors import latent_diffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.systems.generate.phases import resample_views
from threedgen.systems.generate.task import embeddings
from threedgen.systems.generate.views import object_text


@pytest.fixture
def prior() -> MVDream:
    return coarse_prior()


@pytest.fixture
def run(tmp_path: Path, prior: MVDream) -> Path:
    """Return the folder of a run of the prompt "a dog", with its embeddings."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("task: generate\nprompt: a  dog\n")
    embeddings(config.load("mvdream-toybox", ["prompt=a dog", "seed=5"]), prior, ["a dog", ""], None, folder)
    return folder


@torch.no_grad()
def test_code_is_similar_to_that_of_the_run(run: Path, tmp_path: Path, prior: MVDream) -> None:
    codes = []
    for name, words in (("new", []), ("edited", [f"edit={run}"])):
        (tmp_path / name).mkdir()
        options = config.load("edit-toybox", ["prompt=a red dog", *words])
        codes.append(embeddings(options, prior, ["a red dog", ""], None, tmp_path / name)[0, -1])
    old = object_text(run, prior)[0, -1]
    new, edited = (float(torch.cosine_similarity(code, old, dim=0)) for code in codes)
    assert edited > new + 0.2
    with refused():
        object_text(run, tiny_prior())


def test_noise_of_the_code_follows_from_seed_and_prompt(run: Path, tmp_path: Path, prior: MVDream, monkeypatch) -> None:
    def noise(seed: int, *texts: str, config_name: str = "mvdream-toybox", words: tuple[str, ...] = ()) -> list[float]:
        seen = list[float]()

        def sampled(text: torch.Tensor, rng: torch.Generator, near: torch.Tensor | None) -> torch.Tensor:
            seen.append(float(torch.randn(1, generator=rng)))
            return text

        monkeypatch.setattr(prior, "sample_code", sampled)
        folder = tmp_path / f"{seed}-{texts[0]}"
        folder.mkdir(exist_ok=True)
        (folder / "text.safetensors").unlink(missing_ok=True)
        options = config.load(config_name, [f"prompt={texts[0]}", f"seed={seed}", *words])
        embeddings(options, prior, list(texts), None, folder)
        return seen

    dog = noise(0, "a dog", "", "a dog, side view")
    assert len(set(dog)) == 1 and noise(0, "a dog", "") == dog[:1]
    assert len({dog[0], noise(0, "a cat", "")[0], noise(1, "a dog", "")[0]}) == 3
    edited = noise(0, "a red dog", "", config_name="edit-toybox", words=(f"edit={run}",))
    assert edited == dog[:1], "an edit starts with the noise of the run, so that the object stays similar"
    again = tmp_path / "again"
    again.mkdir()
    (again / "config.yaml").write_text(f"task: generate\nprompt: a red dog\nedit: {run}\n")
    shutil.copy(run / "text.safetensors", again)
    twice = noise(0, "a red old dog", "", config_name="edit-toybox", words=(f"edit={again}",))
    assert twice == dog[:1], "so does an edit of an edit"


@torch.no_grad()
def test_only_the_change_of_the_coarse_prediction_is_added(run: Path, prior: MVDream, monkeypatch) -> None:
    options = config.load("edit-toybox", ["prompt=a dog", "refine.steps=2"])
    rig = ring_rig(1, 4, (0.0, 30.0), 2.6, 40.0, prior.image_size)
    old = object_text(run, prior)
    renders = torch.rand(4, prior.image_size, prior.image_size, 3, generator=torch.Generator().manual_seed(0))

    def resampled(text: torch.Tensor, old_text: torch.Tensor | None) -> torch.Tensor:
        condition = Condition((text, old), prior.camera(rig.cameras.c2w), 4, c2w=rig.cameras.c2w)
        rng = torch.Generator().manual_seed(1)
        return resample_views(prior, renders, rig, condition, options.refine, 0.1, rng, old_text)

    torch.testing.assert_close(resampled(old, old), resampled(old, None))
    other = old.clone()
    other[:, -1] += 1
    changed = resampled(other, old)
    assert (changed - resampled(other, None)).abs().max() > 1e-3
    monkeypatch.setattr(latent_diffusion, "TEXT_GUIDANCE", 5.0)
    torch.testing.assert_close(resampled(other, old), changed, msg="the change is not exaggerated")


@torch.no_grad()
def test_resampled_views_depend_on_known_views(prior: MVDream) -> None:
    options = config.load("quick-toybox", ["prompt=a dog", "refine.steps=4"]).refine
    rig = ring_rig(2, 4, (0.0, 30.0), 2.6, 40.0, prior.image_size)
    first, second = rig.groups()
    text = prior.sample_code(prior.encode_prompt(["a dog", ""])[:1], torch.Generator().manual_seed(0))

    def resampled(part: Rig, known: KnownViews | None = None) -> torch.Tensor:
        c2w = part.cameras.c2w
        condition = Condition((text, prior.encode_prompt([""])), prior.camera(c2w), 4, c2w=c2w)
        return resample_views(prior, None, part, condition, options, 0.5, torch.Generator().manual_seed(1), None, known)

    z = resampled(first)
    assert z.shape == (4, *prior.latent_shape)
    rng = torch.Generator().manual_seed(2)
    views = [known_views(prior, latents, first.cameras.c2w, rng) for latents in (z, -z)]
    alone, seen, other = resampled(second), *(resampled(second, known) for known in views)
    assert (seen - alone).abs().max() > 1e-6 and (seen - other).abs().max() > 1e-6
    torch.testing.assert_close(resampled(second, views[0]), seen)
