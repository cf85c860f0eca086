import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.errors import refused
from tests.support.task_server import TINY_BASE, assert_same, finished_run, saved_at, server, weights, write_config
from tests.support.tiny_prior import cpu
from tests.support.tiny_trainings import TRAININGS, base_command, prior_command
from tests.support.toy_run import log
from threedgen import config
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.toybox.training import system, task
from threedgen.toybox.training.networks import multiview_model

STEPS = TINY_BASE["trainer"]["max_steps"]


def base() -> Path:
    return finished_run(base_command)


def prior() -> Path:
    return finished_run(prior_command)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(base(), tmp_path / "run")
    return tmp_path


def test_base_run_leaves_a_2d_model() -> None:
    found = LatentDiffusion.load(str(base() / "base"), dtype="fp32")
    assert found.image_size == 32 and found.max_tokens == 32
    assert found.unknown_words("a red dog wearing a zzz")[0][0] == "zzz"
    image = found.sample("a red dog", None, steps=1, generator=cpu())
    assert image.shape == (1, 32, 32, 3) and torch.isfinite(image).all()


def test_decoder_alone_is_trained_again() -> None:
    before = load_file(base() / "autoencoder" / "autoencoder.safetensors")
    after = LatentDiffusion.load(str(base() / "base"), dtype="fp32").vae.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name].half().float())}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_prior_run_leaves_a_multi_view_prior() -> None:
    found = MVDream.load(str(prior() / "prior"), dtype="fp32")
    c2w = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    views = found.sample("a red dog", c2w, steps=1, generator=cpu())
    assert views.shape == (2, 32, 32, 3) and torch.isfinite(views).all()
    before = LatentDiffusion.load(str(base() / "base"), dtype="fp32")
    for part in ("vae", "text_encoder"):
        assert_same(dict(getattr(found, part).state_dict()), dict(getattr(before, part).state_dict()))
    old, new = before.unet.state_dict(), found.unet.state_dict()
    assert all(not torch.equal(new[name], value) for name, value in old.items() if value.ndim > 1)


def test_new_multi_view_model_computes_what_the_2d_model_does() -> None:
    found = LatentDiffusion.load(str(base() / "base"), dtype="fp32")
    made = multiview_model(found, CoarsePredictor(found.text_shape[1], *found.latent_shape[:2]))
    made.unet.requires_grad_(True)
    x, t = torch.randn(2, *found.latent_shape, generator=cpu()), torch.full((2,), 500)
    text, camera = made.encode_prompt(["a red dog"] * 2), torch.randn(2, 16, generator=cpu())
    with torch.no_grad():
        alone = found.predict(x, t, found.encode_prompt(["a red dog"] * 2))
        assert torch.allclose(made.predict(x, t, text, camera), alone, atol=1e-6)
        joined = made.predict(x, t, text, camera, 2)
    assert not torch.allclose(joined, made.predict(x, t, text, camera), atol=1e-6)
    made.predict(x, t, text, camera, 2).square().sum().backward()
    assert made.unet.class_embedding.linear_2.weight.grad.abs().max() > 0, "the camera is not trained"
    assert made.unet.conv_in.weight.grad[:, made.latent_shape[0] :].abs().max() > 0, "the coarse input is not trained"


def test_saved_networks_are_the_averages() -> None:
    state = weights(base())
    saved = LatentDiffusion.load(str(base() / "base"), dtype="fp32").unet.state_dict()
    for name, value in saved.items():
        average = state[f"average./{name.replace('.', '/')}"]
        assert torch.equal(value, average.half().float()), name
    assert any(not torch.equal(saved[name], state[f"unet.{name}"].half().float()) for name in saved)
    coarse = MVDream.load(str(prior() / "prior"), dtype="fp32").coarse
    kept = load_file(prior() / "coarse" / "coarse.safetensors")
    codes = load_file(prior() / "codes" / "codes.safetensors")
    assert any(not torch.equal(value, kept[f"sampler.{name}"]) for name, value in codes.items())
    kept |= {f"sampler.{name}": value for name, value in codes.items()}
    fusion = load_file(prior() / "fusion" / "fusion.safetensors")
    assert any(not torch.equal(value, kept[f"fusion.{name}"]) for name, value in fusion.items())
    kept |= {f"fusion.{name}": value for name, value in fusion.items()}
    for name, value in dict(coarse.state_dict()).items():
        assert torch.equal(value, kept[name].half().float()), name


def further(folder: Path, *words: str) -> Path:
    """Return the folder of a run that trains the prior further."""
    assert server().run(folder, words=prior_command(folder, f"start={prior() / 'prior'}", *words)) == 0, log(folder)
    return folder / "run"


def test_prior_is_trained_further_from_all_of_its_weights(tmp_path: Path) -> None:
    run = further(tmp_path, "coarse.learning_rate=0", "training.learning_rate=0", "seed=9")
    after, before = (MVDream.load(str(folder / "prior"), dtype="fp32") for folder in (run, prior()))
    for part in ("coarse", "unet"):
        assert_same(dict(getattr(after, part).state_dict()), dict(getattr(before, part).state_dict()))


def test_feature_volumes_are_added_to_a_predictor(tmp_path: Path) -> None:
    words = ("coarse.volume=[8, 8, 8]", "coarse.max_steps=2", "coarse.fusion_steps=0", "coarse.sampler_steps=0")
    run = further(tmp_path, *words)
    after, before = (MVDream.load(str(folder / "prior"), dtype="fp32").coarse for folder in (run, prior()))
    assert after.volume.levels[1][0].first.weight.shape == (8, 8, 3, 3, 3) and before.volume is None
    assert any(layer.weight.any() for layer in after.volume.out), "trained"
    assert_same(dict(after.sampler.state_dict()), dict(before.sampler.state_dict()))


def test_prior_without_coarse_predictor_trains_in_two_sizes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = prior_command(tmp_path, "coarse=null", "training.half=0.5")
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert {"latents", "latents-half", "objects", "objects-half"} <= {path.name for path in run.iterdir()}
    found = MVDream.load(str(run / "prior"), dtype="fp32").with_draft(0.3)
    c2w = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    assert found.sample("a red dog", c2w, steps=2, generator=cpu()).isfinite().all()


def test_run_stopped_in_every_stage_ends_the_same(tmp_path: Path) -> None:
    """Neither validation in between nor a lost or damaged file of a stage changes the result."""
    run, words = tmp_path / "run", base_command(tmp_path, "trainer.val_check_interval=4")

    def killed_at(step: int, system: str) -> None:
        server().killed(tmp_path, words=words, hold_at=step, hold_in=system)

    def signalled_at(step: int, system: str, number: int) -> int:  # saves at the signal only
        seldom = [*words, "checkpoint.seconds=1000"]
        return server().signalled(tmp_path, number, words=seldom, hold_at=step, hold_in=system)

    def killed_in(*functions: str) -> None:
        for function in functions:
            assert server().run(tmp_path, words=words, die_in=function) == -signal.SIGKILL, log(tmp_path)

    killed_at(3, "Autoencoder")
    assert saved_at(run / "autoencoder")
    killed_in("threedgen.toybox.training.autoencoder.standardise")  # trained, but not yet written
    assert signalled_at(2, "Decoder", signal.SIGINT) == 130 and saved_at(run / "decoder"), log(tmp_path)
    killed_in(
        "threedgen.toybox.training.text_encoder.build",  # written, but the next stage has not started
        "threedgen.data.latent_cache.encode",  # in the middle of its first step
    )
    assert not saved_at(run / "words") and (run / "autoencoder" / "autoencoder.safetensors").exists()
    killed_at(3, "TextEncoder")
    assert saved_at(run / "words")
    killed_in("threedgen.run.cache.save_network", "threedgen.toybox.training.system.vocabulary_digest")
    assert not saved_at(run) and (run / "words" / "words.safetensors").exists()
    assert signalled_at(6, "Prior", signal.SIGTERM) == 143 and saved_at(run), log(tmp_path)
    shutil.rmtree(run / "latents")  # only a cache
    vae = run / "autoencoder" / "autoencoder.safetensors"
    vae.write_bytes(vae.read_bytes()[:-9])
    assert server().run(tmp_path, words=["--resume", "run"]) == 0, log(tmp_path)
    assert "autoencoder.safetensors is damaged" in log(tmp_path)
    assert_same(weights(run), weights(base()))
    for name in TRAININGS["base"].files:
        assert (run / name).read_bytes() == (base() / name).read_bytes(), name


@pytest.mark.gpu
def test_training_on_a_gpu(tmp_path: Path) -> None:
    trainer = TINY_BASE["trainer"] | {"accelerator": "gpu"}
    options = config.load(write_config(tmp_path / "base.yaml", TINY_BASE, trainer=trainer)).model_copy(
        update={"out": str(tmp_path / "run")}
    )
    assert task.run_base(options, quiet=True) == 0
    assert (tmp_path / "run" / "samples.png").exists()


def test_run_does_not_resume_with_another_vocabulary(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = config.load(copy / "run" / "config.yaml", [f"trainer.max_steps={STEPS + 2}"])
    options = options.model_copy(update={"out": str(copy / "run")})
    monkeypatch.setattr(system, "vocabulary_digest", lambda prior: "other")
    with refused(None, "vocabulary", "'other'"):
        task.run_base(options, resume=copy / "run", quiet=True)
