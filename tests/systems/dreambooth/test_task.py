import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.official import official_checkpoint
from tests.support.script_poses import script_poses
from tests.support.task_server import assert_same, finished_run, prior_folder, server, weights
from tests.support.tiny_prior import coarse_prior, tiny_prior
from tests.support.tiny_trainings import dreambooth_command, dreambooth_config
from tests.support.toy_run import log
from threedgen import config
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import subject_weights
from threedgen.guidance.weights.addition_files import subject_card
from threedgen.run.metrics import read_summary
from threedgen.systems.dreambooth import system as system_module
from threedgen.systems.dreambooth.options import MVDreamBoothConfig
from threedgen.systems.dreambooth.system import DreamBoothSystem, augment, preservation
from threedgen.systems.dreambooth.task import subject_code
from threedgen.toybox.data.subjects import make_subject, render_photos

RESULT = "personalisation.safetensors"


def undisturbed() -> Path:
    return finished_run(dreambooth_command)


def system_of(folder: Path, prior: MVDream, *overrides: str, class_images: Any = None) -> DreamBoothSystem:
    options: MVDreamBoothConfig = config.load(dreambooth_config(folder), list(overrides))
    subject_weights.add_word(prior.tokenizer, prior.text_encoder, "[v]")
    pictures = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    return DreamBoothSystem(options, prior, pictures, "base", class_images)


def steps(system: DreamBoothSystem, count: int) -> None:
    made = system.configure_optimizers()
    for step in range(count):
        made["optimizer"].zero_grad()
        system.training_step(step, step).backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()


def distance(system: DreamBoothSystem) -> float:
    return float(preservation(system.trained, system.originals, "l1").detach())


def test_run_leaves_the_file_of_the_subject() -> None:
    run = undisturbed()
    summary = read_summary(run)
    assert summary["status"] == "finished" and summary["steps"] == 8 and summary["photos"] == 3
    card = subject_card(run / RESULT)
    assert (card["kind"], card["identifier"], card["prompt"]) == ("difference", "[v]", "a [v] dog")
    assert card["base"] == summary["base"]
    base = MVDream.load(str(prior_folder()), dtype="fp32")
    tuned = MVDream.load(str(prior_folder()), dtype="fp32")
    subject_weights.apply(tuned, run / RESULT)
    state, moved = weights(run), 0
    for name, value in tuned.unet.named_parameters():
        learnt, before = state[f"unet.{name}"], base.unet.get_parameter(name)
        assert torch.allclose(value, learnt, rtol=0, atol=float((learnt - before).abs().max()) * 2**-8), name
        moved += not torch.equal(value, before)
    assert moved > 20
    assert torch.equal(state["word"], load_file(run / RESULT)["identifier"])
    sheets = {path.name: path for path in (run / "samples").iterdir()}
    assert sorted(sheets) == ["000000.png", "000004.png", "000008.png"] and (run / "photos.png").exists()
    with Image.open(sheets["000008.png"]) as image:
        assert image.width == 8 * 128 + 9 * 2
    assert sheets["000000.png"].read_bytes() != sheets["000008.png"].read_bytes()


def test_resumed_run_keeps_the_photos_of_its_start(tmp_path: Path) -> None:
    words = dreambooth_command(tmp_path)
    server().killed(tmp_path, words=words, hold_at=4, hold_in="Dream")
    for path in (tmp_path / "photos").iterdir():
        path.write_bytes((tmp_path / "photos" / "0.png").read_bytes())
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert_same(weights(tmp_path / "run"), weights(undisturbed()))


def test_class_images_are_sampled_once(tmp_path: Path) -> None:
    more = ["tuning.preservation=images", "tuning.class_images=2", "tuning.class_steps=1", "trainer.max_steps=2"]
    assert server().run(tmp_path, words=dreambooth_command(tmp_path, *more)) == 0, log(tmp_path)
    drawn = load_file(tmp_path / "run" / "class.safetensors")["pictures"]
    assert drawn.shape == (2, 16, 16, 3) and not torch.equal(drawn[0], drawn[1])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "loss_class" in json.loads(lines[-1])


def test_class_images_train_with_their_own_prompts(tmp_path: Path) -> None:
    words = ["tuning.preservation=images", "tuning.class_images=2"]
    words += ["tuning.class_prompts=['{class}', '{class} wearing a hat', never]"]
    others = torch.rand(2, 16, 16, 3)
    system = system_of(tmp_path, tiny_prior(), *words, class_images=others)
    assert system.config.class_prompts == ["a dog", "a dog wearing a hat"]
    seen, image_loss = set(), system.image_loss

    def spied(shown: torch.Tensor, prompt: str, rng: torch.Generator) -> torch.Tensor:
        if prompt != system.config.prompt:
            found = {k for k, other in enumerate(others) for picture in shown if torch.equal(picture, other)}
            assert found == {system.config.class_prompts.index(prompt)}
            seen.update(found)
        return image_loss(shown, prompt, rng)

    system.image_loss = spied
    steps(system, 12)
    assert seen == {0, 1}


def test_config_of_the_released_weights_runs_end_to_end(tmp_path: Path) -> None:
    """A checkpoint as MVDream's authors released it, but for the widths: tuned, and its subject sampled."""
    path = official_checkpoint(tmp_path, "sd21")
    dreambooth_config(tmp_path)
    small = ["threads=1", f"prior.weights={path}", "prior.tokenizer=clip", "prior.dtype=fp32", "prior.image_size=64"]
    tune = ["mvdreambooth-sd21", "prompt=a photo of a [v] dog", "photos=photos", "out=run", "sheet.steps=1"]
    tune += ["trainer.max_steps=2", "trainer.accelerator=cpu"]
    see = ["preview-mvdream-sd21", "prompt=a [v] dog on a chair", "out=seen", "steps=1"]
    for words in (tune, [*see, f"prior.personalisation=run/{RESULT}"]):
        assert server().run(tmp_path, words=["--config", *words, *small]) == 0, log(tmp_path)
    with Image.open(tmp_path / "seen" / "views.png") as picture:
        assert picture.size == (4 * 64 + 5 * 2, 64 + 2 * 2)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_preservation_has_value_and_gradient_of_its_formula(norm: str) -> None:
    rng = torch.Generator().manual_seed(0)
    before = {str(k): torch.randn(k, 3, generator=rng) for k in range(1, 5)}
    weights = {name: torch.randn(b.shape, generator=rng).requires_grad_() for name, b in before.items()}
    distance = {"l1": torch.abs, "l2": torch.square}[norm]
    plain = torch.stack([distance(weights[name] - b).sum() for name, b in before.items()]).sum() / 30
    loss = preservation(weights | {"other": torch.tensor(9.0)}, before, norm)
    torch.testing.assert_close(loss, plain)
    expected, found = (torch.autograd.grad(0.7 * value, list(weights.values())) for value in (plain, loss))
    assert all(map(torch.equal, found, expected))


def test_preservation_limits_the_drift(tmp_path: Path) -> None:
    count = sum(p.numel() for p in tiny_prior().unet.parameters())
    free = system_of(tmp_path, tiny_prior(), "tuning.preservation=none")
    held = system_of(tmp_path, tiny_prior(), "tuning.preservation=l1", f"tuning.weight={100 * count}")
    assert distance(free) == distance(held) == 0
    steps(free, 12), steps(held, 12)
    assert 0 < distance(held) < 0.5 * distance(free)


@torch.no_grad()
def test_coarse_prediction_of_a_photo_is_that_of_its_class(tmp_path: Path) -> None:
    prior, seen = coarse_prior(), []
    usual = prior.coarse(prior.split_text(prior.encode_prompt(["a dog"]))[1], None)
    system = system_of(tmp_path, prior)
    for prompt in ("a [v] dog", "a photo of a [v] puppy"):  # the prior replaces and leaves out unknown words
        assert torch.allclose(system.encode_prompt(prompt), prior.encode_prompt([prompt]), atol=1e-6)
    prior.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 4:]))
    system.training_step(0, 0)
    assert torch.allclose(seen[0], usual.expand_as(seen[0]), atol=1e-5)


@torch.no_grad()
def test_code_of_the_subject_has_the_colours_of_its_photos(tmp_path: Path) -> None:
    prior = MVDream.load("toybox-prior", dtype="fp32")
    options: MVDreamBoothConfig = config.load(dreambooth_config(tmp_path), ["prompt=a [v] dog"])
    c2w, side = script_poses(4), prior.image_size // 4

    def colour(images: torch.Tensor) -> torch.Tensor:
        return images[:, side:-side, side:-side].mean((0, 1, 2))

    found = []
    for number in (0, 1):
        photos = torch.from_numpy(render_photos(make_subject(3, number, noun="dog"), 4, prior.image_size))
        (folder := tmp_path / f"{number}").mkdir()
        text = subject_code(options, folder, prior, photos)
        assert text is not None
        found.append((colour(photos), colour(prior.decode_latents(prior.coarse_latents(text.expand(4, -1, -1), c2w)))))
    (first, near), (second, far) = found
    assert (first - near).norm() < (first - far).norm() and (second - far).norm() < (second - near).norm()
    assert subject_code(options, tmp_path, tiny_prior(), torch.rand(2, 16, 16, 3)) is None


def test_lora_has_few_parameters_and_its_file_is_the_trained_network(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(system_module, "LORA_RANK", 2)
    base = tiny_prior()
    base.save(tmp_path / "base")
    prior = MVDream.load(str(tmp_path / "base"), dtype="fp32")
    system = system_of(tmp_path, prior, "tuning.preservation=lora")
    system.base = subject_weights.checksum(
        *[getattr(MVDream.load(str(tmp_path / "base")), part) for part in ("unet", "text_encoder")]
    )
    steps(system, 4)
    learnt = sum(p.numel() for p in system.trained.values())
    assert 0 < learnt < 0.1 * sum(p.numel() for p in base.unet.parameters())
    system.write(tmp_path / RESULT)
    found = MVDream.load(str(tmp_path / "base"), dtype="fp32")
    subject_weights.apply(found, tmp_path / RESULT)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500, 500])
    text = found.encode_prompt(["a dog"]).repeat(2, 1, 1)
    with torch.no_grad():
        wanted = prior.predict(x, t, text)
        untouched = MVDream.load(str(tmp_path / "base"), dtype="fp32").predict(x, t, text)
        assert torch.allclose(found.predict(x, t, text), wanted, atol=1e-5)
    assert not torch.allclose(untouched, wanted, atol=1e-5)


def test_augmentation_is_light_and_never_mirrors() -> None:
    x = torch.zeros(16, 32, 32, 3)
    x[:, :, :16] = 1.0
    moved = augment(x, torch.Generator().manual_seed(0))
    assert moved.min() >= 0 and moved.max() <= 1 and len({float(m.mean()) for m in moved}) > 8
    assert (moved[:, :, :12] > 0.9).all() and (moved[:, :, 20:] < 0.1).all()
