import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.script_poses import script_poses
from tests.support.task_server import TINY, assert_same, prior_folder, server, weights, write_config
from tests.support.tiny_prior import TEXT_WIDTH, cpu, tiny_prior
from tests.support.toy_run import log
from threedgen.guidance.guidance import Condition
from threedgen.guidance.losses.lora import PosedLoRA
from threedgen.guidance.losses.options import VSDConfig
from threedgen.guidance.losses.vsd import VSD
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.schedule import Prediction, Schedule


@pytest.fixture(scope="module")
def prior() -> MVDream:
    made = tiny_prior()
    for network in made.networks.values():
        network.requires_grad_(False)
    return made


def vsd(prior: MVDream, **options: Any) -> VSD:
    return VSD(VSDConfig(**options), prior.schedule, 100, prior, cpu(7))


def inputs() -> tuple[Tensor, Condition]:
    text = torch.randn(2, 3, TEXT_WIDTH, generator=cpu(1))
    return torch.randn(2, 4, 8, 8, generator=cpu(2)).requires_grad_(), Condition((text[:1], text[1:]))


def test_posed_lora_starts_as_prior_and_is_removed_after_use(prior: MVDream) -> None:
    lora, poses = PosedLoRA(prior.unet, 2, cpu()), script_poses(2).flatten(1)
    x, text = torch.randn(2, 4, 8, 8, generator=cpu(4)), torch.randn(2, 3, TEXT_WIDTH, generator=cpu(5))

    @torch.no_grad()
    def predict(c2w: Tensor | None = None) -> Tensor:
        if c2w is None:
            return prior.network(x, torch.tensor([300, 600]), text)
        with lora.applied(prior.unet, c2w):
            return predict()

    plain = predict()
    assert torch.equal(predict(poses), plain)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.05)
    changed = predict(poses)
    assert (changed - plain).abs().max() > 1e-3
    assert (predict(poses.flip(0)) - changed).abs().max() > 1e-4, "depends on the pose"
    assert torch.equal(predict(), plain)


def test_first_gradient_is_guidance_alone(prior: MVDream) -> None:
    """The copy equals the prior at first, so (s - 1) (eps_c - eps_u) remains."""
    distil, (latents, condition) = vsd(prior, guidance_scale=7.5, min_step_percent=0.5, max_step_percent=0.5), inputs()
    loss, logs = distil(latents, prior.denoise, condition, 0, cpu(3))
    (grad,) = torch.autograd.grad(loss, latents)
    assert float(logs["t"]) == 500 and float(logs["loss_lora"]) > 0
    generator, z, t = cpu(3), latents.detach(), torch.tensor([500, 500])
    torch.randint(500, 501, (1,), generator=generator)
    x = prior.schedule.add_noise(z, torch.randn(z.shape, generator=generator), t)
    with torch.no_grad():
        cond, uncond = (prior.denoise(x, t, text.expand(2, -1, -1)) for text in condition.text)
    expected = (1 - float(prior.schedule.alpha_bar[500])) * 6.5 * (cond - uncond) / 2
    torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-3)


def test_gradients_reach_latents_and_lora_separately_and_not_prior(prior: MVDream) -> None:
    distil, (latents, condition) = vsd(prior), inputs()
    loss, _ = distil(latents, prior.denoise, replace(condition, c2w=script_poses(2)), 0, cpu(3))
    loss.backward()
    grads = {name: p.grad for name, p in distil.named_parameters()}
    assert grads and all(name.startswith("lora.") for name in grads)
    moved = [name for name, grad in grads.items() if grad is not None and grad.abs().max() > 0]
    assert "lora.up.0" in moved and "lora.pose_out" in moved
    assert all(p.grad is None for network in prior.networks.values() for p in network.parameters())


def test_lora_trains_at_all_noise_levels(prior: MVDream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timestep range of the guidance does not narrow that of the copy."""
    distil, timesteps = vsd(prior, min_step_percent=0.02, max_step_percent=0.5), list[float]()

    def lora_output(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        timesteps.extend(t.tolist())
        return x

    monkeypatch.setattr(distil, "lora_output", lora_output)
    for seed in range(300):
        distil.lora_loss(torch.zeros(2, 4, 2, 2), Condition((torch.zeros(1, 3, TEXT_WIDTH),) * 2), cpu(seed))
    counts = torch.histc(torch.tensor(timesteps, dtype=torch.float32), 10, 0, prior.schedule.T)
    assert len(timesteps) == 600 and counts.min() > 30 and counts.max() < 100, counts.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_lora_learns_what_the_unet_predicts(prediction: Prediction, prior: MVDream, monkeypatch: Any) -> None:
    """The loss is zero for the noise or v that belongs to the noisy latents."""
    schedule = Schedule.scaled_linear(prediction=prediction)
    distil = VSD(VSDConfig(), schedule, 100, prior, cpu(7))
    z, condition = torch.randn(2, 4, 8, 8, generator=cpu(1)), inputs()[1]

    def lora_output(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha = schedule.alpha_bar[t].sqrt()[:, None, None, None]
        sigma = (1 - alpha.square()).sqrt()
        noise = (x - alpha * z) / sigma
        return noise if prediction == "epsilon" else alpha * noise - sigma * z

    monkeypatch.setattr(distil, "lora_output", lora_output)
    for seed in range(5):
        assert float(distil.lora_loss(z, condition, cpu(seed))) < 1e-6


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


def test_stopped_vsd_run_resumes_exactly_with_its_lora(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert server().run(whole, words=command(whole)) == 0, log(whole)
    words = command(cut, "checkpoint.seconds=1000")
    assert server().signalled(cut, signal.SIGTERM, words=words, hold_at=3) == 143, log(cut)
    before = weights(cut / "run")
    assert server().run(cut, words=["--resume", "run"]) == 0, log(cut)
    after = weights(cut / "run")
    assert_same(after, weights(whole / "run"))
    lora = [name for name in after if name.startswith("distillation.lora.up")]
    assert lora and all(after[name].abs().max() > 0 for name in lora)
    assert any(not torch.equal(before[name], after[name]) for name in lora)
    assert not any("unet" in name for name in after), "the prior is in no checkpoint"
