"""VSD: the copy that learns, its gradient, and that a stopped run goes on exactly."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.marks import unix
from tests.support.script_poses import script_poses
from tests.support.task_server import TINY, assert_same, prior_folder, server, weights, write_config
from tests.support.tiny_prior import TEXT_WIDTH, cpu, tiny_prior
from tests.support.toy_run import log
from threedgen.config import ConfigError
from threedgen.guidance.diffusion import Conditions
from threedgen.guidance.distillation.lora import LoRA, PosedLoRA
from threedgen.guidance.distillation.options import VSDConfig
from threedgen.guidance.distillation.vsd import VSD
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule


@pytest.fixture(scope="module")
def prior() -> MVDream:
    made = tiny_prior()
    for network in made.networks.values():
        network.requires_grad_(False)
    return made


def vsd(prior: MVDream, **options: Any) -> VSD:
    return VSD(VSDConfig(**options), prior.schedule, 100, prior, cpu(7))


def inputs() -> dict[str, Any]:
    text = torch.randn(2, 3, TEXT_WIDTH, generator=cpu(1))
    return {
        "latents": torch.randn(2, 4, 8, 8, generator=cpu(2)).requires_grad_(),
        "given": Conditions((text[:1], text[1:])),
        "step": 0,
        "generator": cpu(3),
    }


def ask(lora: PosedLoRA, prior: MVDream, c2w: Tensor) -> Tensor:
    x, text = torch.randn(2, 4, 8, 8, generator=cpu(4)), torch.randn(2, 3, TEXT_WIDTH, generator=cpu(5))
    with lora.applied(prior.unet, c2w), torch.no_grad():
        return prior.network(x, torch.tensor([300, 600]), text)


def test_the_copy_begins_as_the_prior_and_leaves_no_trace(prior: MVDream) -> None:
    lora, poses = PosedLoRA(prior.unet, 2, cpu()), script_poses(2).flatten(1)
    plain = ask(PosedLoRA(prior.unet, 2, cpu()), prior, poses)
    x, text = torch.randn(2, 4, 8, 8, generator=cpu(4)), torch.randn(2, 3, TEXT_WIDTH, generator=cpu(5))
    with torch.no_grad():
        assert torch.equal(plain, prior.network(x, torch.tensor([300, 600]), text))
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.05)
    changed = ask(lora, prior, poses)
    assert (changed - plain).abs().max() > 1e-3
    assert (ask(lora, prior, poses.flip(0)) - changed).abs().max() > 1e-4, "the pose is seen"
    with torch.no_grad():
        assert torch.equal(plain, prior.network(x, torch.tensor([300, 600]), text)), "outside it is the prior again"
    names = {name.rpartition(".to_")[2] for name in lora.names}
    assert names == {"q", "k", "v", "out.0"} and len(lora.names) % 8 == 0, "self- and cross-attention"


def test_the_additions_are_those_of_merged_weights(prior: MVDream) -> None:
    lora = LoRA(prior.unet, 8, cpu(), scale=0.5)
    assert torch.cat([p.flatten() for p in lora.down]).std().item() == pytest.approx(1 / 8, rel=0.1)
    with torch.no_grad():
        for k, up in enumerate(lora.up):
            up.copy_(torch.randn(up.shape, generator=cpu(k)))
    name, x = lora.names[0], torch.randn(5, lora.down[0].shape[1], generator=cpu())
    layer = prior.unet.get_submodule(name)
    merged = torch.nn.functional.linear(x, layer.weight + 0.5 * lora.up[0] @ lora.down[0], layer.bias)
    handles = lora.attach(prior.unet)
    try:
        torch.testing.assert_close(layer(x), merged, atol=1e-4, rtol=1e-4)
    finally:
        for handle in handles:
            handle.remove()


def test_the_pose_enters_at_unit_scale(prior: MVDream) -> None:
    """Rows of weights whose squares sum to about one, so that a pose of unit numbers gives numbers of that size."""
    lora = PosedLoRA(prior.unet, 2, cpu())
    assert lora.pose_in.shape[1] == 16 and lora.pose_in.std().item() == pytest.approx(0.25, rel=0.1)


def test_the_seed_decides_the_copy(prior: MVDream) -> None:
    one, same, other = (PosedLoRA(prior.unet, 2, cpu(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["down.0"], other["down.0"])


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention of a UNet"):
        PosedLoRA(nn.Linear(2, 2))


def test_at_first_the_gradient_is_guidance_alone(prior: MVDream) -> None:
    """The copy says what the prior says of the prompt, so (s - 1) (eps_c - eps_u) is what is left."""
    distil, given = vsd(prior, guidance_scale=7.5, min_step_percent=0.5, max_step_percent=0.5), inputs()
    loss, logs = distil(denoise=prior.denoise, **given)
    (grad,) = torch.autograd.grad(loss, given["latents"])
    assert float(logs["t"]) == 500 and float(logs["loss_lora"]) > 0
    generator, z, t = cpu(3), given["latents"].detach(), torch.tensor([500, 500])
    torch.randint(500, 501, (1,), generator=generator)
    x = prior.schedule.add_noise(z, torch.randn(z.shape, generator=generator), t)
    with torch.no_grad():
        cond, uncond = (prior.denoise(x, t, text.expand(2, -1, -1)) for text in given["given"].text)
    expected = (1 - float(prior.schedule.alpha_bar[500])) * 6.5 * (cond - uncond) / 2
    torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-3)


def test_object_and_copy_learn_apart_and_the_prior_not_at_all(prior: MVDream) -> None:
    distil, given = vsd(prior, pose_dropout=0.0), inputs()
    given["given"] = replace(given["given"], c2w=script_poses(2))
    loss, _ = distil(denoise=prior.denoise, **given)
    loss.backward()
    learnt = {name: p.grad for name, p in distil.named_parameters()}
    assert learnt and all(name.startswith("lora.") for name in learnt)
    moved = [name for name, grad in learnt.items() if grad is not None and grad.abs().max() > 0]
    assert "lora.up.0" in moved and "lora.pose_out" in moved
    assert all(p.grad is None for network in prior.networks.values() for p in network.parameters())
    with torch.no_grad():  # the object's gradient does not pass through the copy's loss
        for p in distil.parameters():
            p.add_(0.01)
    z = given["latents"].detach()
    learning = distil.learn(z, replace(given["given"], c2w=None), cpu())
    assert learning.requires_grad and not z.requires_grad


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_copy_learns_the_renders(prior: MVDream, prediction: Any) -> None:
    """Of one picture, asked with one noise, its error falls; poses are given, views are joined."""
    schedule = Schedule.scaled_linear(prediction=prediction)
    distil = VSD(VSDConfig(pose_dropout=0.0), schedule, 100, prior, cpu(7))
    z, text = torch.ones(2, 4, 8, 8), torch.randn(1, 3, TEXT_WIDTH, generator=cpu(1))
    poses = script_poses(2)
    given = Conditions((text, text), camera_vector(poses), 2, c2w=poses)
    optimiser = torch.optim.Adam(distil.parameters(), lr=0.03)
    errors = []
    for _ in range(6):
        loss = distil.learn(z, given, cpu(5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.9 * errors[0], errors


def test_the_copy_learns_at_every_noise_level(prior: MVDream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The range of the guidance's own t does not narrow the copy's: each tenth of the table has its share."""
    distil, asked = vsd(prior, min_step_percent=0.02, max_step_percent=0.5), []

    def ask(x: Tensor, t: Tensor, given: Conditions) -> Tensor:
        asked.extend(t.tolist())
        return x

    monkeypatch.setattr(distil, "copy", ask)
    for seed in range(300):
        distil.learn(torch.zeros(2, 4, 2, 2), Conditions((torch.zeros(1, 3, TEXT_WIDTH),) * 2), cpu(seed))
    T = prior.schedule.T
    shares = torch.histc(torch.tensor(asked, dtype=torch.float32), 10, 0, T)
    assert len(asked) == 600 and shares.min() > 30 and shares.max() < 100, shares.tolist()


def test_without_a_prior_there_is_nothing_to_copy() -> None:
    with pytest.raises(ValueError, match="needs the prior"):
        VSD(VSDConfig(), Schedule.scaled_linear())


# ---------------------------------------------------------------- a run


def command(folder: Path, *words: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "prior": {"name": "stable-diffusion", "weights": str(prior_folder()), "dtype": "fp32"},
        "distillation": {"name": "vsd", "min_step_percent": 0.1, "max_step_percent": 0.9},
        "optimizer": {"distillation": 0.01},
        "warm_start": {"share": 0},
        "trainer": TINY["trainer"] | {"max_steps": 6},
    }
    return ["--config", str(write_config(folder / "vsd.yaml", TINY | values)), "out=run", *words]


@unix
def test_a_stopped_run_goes_on_exactly_and_the_copy_with_it(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert server().run(whole, words=command(whole)) == 0, log(whole)
    words = command(cut, "checkpoint.seconds=1000")
    assert server().signalled(cut, signal.SIGTERM, words=words, hold_at=3) == 143, log(cut)
    before = weights(cut / "run")
    assert server().run(cut, words=["--resume", "run"]) == 0, log(cut)
    after = weights(cut / "run")
    assert_same(after, weights(whole / "run"))
    copy = [name for name in after if name.startswith("distill.lora.up")]
    assert copy and all(after[name].abs().max() > 0 for name in copy), "it learns"
    assert any(not torch.equal(before[name], after[name]) for name in copy)
    assert not any("unet" in name for name in after), "the prior is in no checkpoint"
