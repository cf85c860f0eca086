"""The model around the network: what it is told, how it draws, what is kept of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny_mvdiffusion import awaken, ring, tiny_model, wall
from tests.support.tiny_prior import cpu
from threedgen.config import ConfigError
from threedgen.guidance.distillation.lora import ATTENTION, CONVOLUTIONS, LoRA
from threedgen.guidance.mvdiffusion.difference import difference, widened
from threedgen.guidance.mvdiffusion.inputs import (
    Convention,
    depth_channels,
    given_condition,
    mask_channels,
    masked_pictures,
    unknown_channels,
)
from threedgen.guidance.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.mvdiffusion.weights import save_blocks

PROMPTS = ["a red dog", "a blue cat"] * 4


def test_views_are_drawn_together_and_alone() -> None:
    model, geometry = tiny_model(), ring(8, 16)
    alone = model.draw(PROMPTS, None, (16, 16), steps=2, generator=cpu())
    assert alone.shape == (8, 16, 16, 3)
    fresh = model.with_network(MultiviewUNet(model.unet))
    torch.testing.assert_close(fresh.draw(PROMPTS, geometry, (16, 16), steps=2, generator=cpu()), alone)
    awaken(fresh.multiview)
    together = fresh.draw(PROMPTS, geometry, (16, 16), steps=2, generator=cpu())
    assert (together - alone).abs().max() > 1e-3


def test_guidance_may_be_towards_the_other_views_too() -> None:
    model, geometry = tiny_model(), ring(8, 16)
    model = model.with_network(MultiviewUNet(model.unet))
    awaken(model.multiview)

    def draw(guide_views: bool, guidance_scale: float, prompts: list[str] = PROMPTS) -> torch.Tensor:
        model.guide_views = guide_views
        how = {"steps": 2, "guidance_scale": guidance_scale, "generator": cpu()}
        return model.draw(prompts, geometry, (16, 16), **how)

    torch.testing.assert_close(draw(True, 1), draw(False, 1))
    assert (draw(True, 3) - draw(False, 3)).abs().max() > 1e-3
    silent = [""] * 8  # the text is the negative one: without guidance towards the views there is none
    torch.testing.assert_close(draw(False, 3, silent), draw(False, 1, silent))
    assert (draw(True, 3, silent) - draw(True, 1, silent)).abs().max() > 1e-3


def test_fresh_noise_in_each_step_is_drawn_from_the_generator() -> None:
    model = tiny_model()
    plain, noisy, again = (
        model.draw(PROMPTS, None, (16, 16), steps=2, generator=cpu(), eta=eta) for eta in (0.0, 1.0, 1.0)
    )
    assert torch.equal(noisy, again) and (noisy - plain).abs().max() > 1e-3


@pytest.mark.parametrize("convention", ["code", "paper"])
def test_a_given_view_may_be_held(convention: Convention) -> None:
    model, geometry = tiny_model("outpaint"), ring(8, 16)
    given, views = torch.arange(8) == 0, torch.rand(8, 16, 16, 3, generator=cpu())
    told = model.masked_extra(views, given, convention)

    def draw(hold: bool) -> torch.Tensor:
        model.hold = hold
        known = (told, None)
        return model.draw(PROMPTS, geometry, (16, 16), lambda size: known, 2, generator=cpu(), mask=convention)

    free, held = draw(False), draw(True)
    torch.testing.assert_close(held[0], model.decode_latents(model.encode_views(views[:1]))[0].float())
    assert (free[0] - held[0]).abs().max() > 1e-3
    assert all((free[view] - held[view]).abs().max() > 1e-5 for view in (1, 7)), "those beside it see another one"


@pytest.mark.parametrize("slim", [False, True])
def test_frames_are_given_by_the_branch_or_held(slim: bool) -> None:
    model = tiny_model("keys" if slim else "depth")
    given, depth = torch.tensor([True, False, False]), torch.full((3, 32, 48), 2.0)
    latents = torch.randn(3, 4, 16, 24, generator=cpu())
    told, nothing = depth_channels(depth, 16, 24), None

    def draw(condition: torch.Tensor | None) -> torch.Tensor:
        known = (told, condition)
        return model.draw(PROMPTS[:3], wall(3, 32, 48), (32, 48), lambda size: known, 2, generator=cpu())

    free, held = draw(nothing), draw(given_condition(latents, given))
    same = torch.allclose(held[0], model.decode_latents(latents[:1])[0].float(), atol=1e-5)
    assert same == slim
    assert all((free[view] - held[view]).abs().max() > 1e-5 for view in range(3))


def test_half_the_memory_draws_the_same() -> None:
    model, geometry = tiny_model(), ring(8, 16)
    model = model.with_network(MultiviewUNet(model.unet))
    awaken(model.multiview)
    model.dtype = torch.bfloat16

    def size() -> int:
        return sum(tensor.nbytes for tensor in model.multiview.parameters())

    before, drawn = size(), model.draw(PROMPTS, geometry, (16, 16), steps=2, generator=cpu())
    again = model.compact().draw(PROMPTS, geometry, (16, 16), steps=2, generator=cpu())
    assert size() < 0.6 * before and torch.equal(again, drawn)


def test_a_step_may_stop_the_drawing() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_model().draw(PROMPTS, None, (16, 16), steps=2, on_step=stop)


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_a_wider_unet_begins_as_its_base(extra: int) -> None:
    model = tiny_model()
    x, t, text = torch.randn(2, 4, 8, 8, generator=cpu()), torch.full((2,), 300), model.encode_prompt(PROMPTS[:2])
    before = model.denoise_views(x, t, text)
    model.unet = widened(model.unet, extra)
    torch.testing.assert_close(model.denoise_views(x, t, text), before)
    assert unknown_channels(model.extra, x).shape[1] == extra


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 channels.*depth \(1\).*\(5\)"):
        tiny_model(in_channels=11, out_channels=4)


@pytest.mark.parametrize("targets", [ATTENTION, ATTENTION + CONVOLUTIONS])
def test_blocks_are_kept_as_a_difference(targets: tuple[str, ...], tmp_path: Path) -> None:
    model = tiny_model()
    digest = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    unet = widened(model.unet, 1)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] += 0.1
    lora = LoRA(unet, 2, cpu(), targets=targets)
    for up in lora.up:
        up.data.normal_(std=0.05, generator=cpu())
    network = awaken(MultiviewUNet(unet, "depth", "capped", condition=True)).half().float()
    save_blocks(tmp_path / "blocks.safetensors", network, difference(network.unet, lora))
    lora.half().float().attach(network.unet)
    x, t, text = torch.randn(2, 5, 8, 8, generator=cpu()), torch.full((2,), 300), model.encode_prompt(PROMPTS[:2])
    with torch.no_grad():
        expected = network(x, t, text)
        loaded = tiny_model().with_views(tmp_path / "blocks.safetensors")
        found = loaded.multiview(x, t, text)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)
    assert loaded.extra == "depth" and loaded.multiview.has_condition
    stored = load_file(tmp_path / "blocks.safetensors")
    assert sum("unet." in name for name in stored) == 2
    assert all(torch.equal(model.unet.state_dict()[name], tensor) for name, tensor in digest.items())


def test_blocks_say_how_they_learnt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "blocks.safetensors"
    save_blocks(path, MultiviewUNet(tiny_model().unet), None, learnt={"k": 5, "neighbours": "ring"})
    model = tiny_model().with_views(path)
    model.compare_learnt(k=5, neighbours="ring", mask="paper")
    assert not caplog.messages
    model.compare_learnt(k=3, neighbours="ring")
    assert caplog.messages == ["k=3: the attention between views learnt with 5"]


def test_blocks_of_another_base_are_refused(tmp_path: Path) -> None:
    unet = widened(tiny_model().unet, 1)
    save_blocks(
        tmp_path / "blocks.safetensors", MultiviewUNet(unet, "depth", "capped"), difference(unet, LoRA(unet, 2))
    )
    other = tiny_model(block_out_channels=(32, 96))
    with pytest.raises(
        ConfigError, match="blocks: .*another base, whose levels are 32, 64 wide, and this one's 32, 96"
    ):
        other.with_views(tmp_path / "blocks.safetensors")
    tiny_model().save(tmp_path / "base")
    with pytest.raises(ConfigError, match="blocks: the weights have no correspondence-aware blocks"):
        other.with_views(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors")


def test_inverse_depth_is_brought_to_a_range() -> None:
    depth = torch.tensor([[[1.0, 2.0], [4.0, 0.0]]])
    extra = depth_channels(depth, 2, 2)[0, 0]
    torch.testing.assert_close(extra, torch.tensor([[1.0, -1 / 3], [-1.0, -2.0]]))
    assert (depth_channels(torch.zeros(1, 2, 2), 2, 2) == -2).all()
    assert depth_channels(torch.full((1, 2, 2), 3.0), 2, 2).isfinite().all()


def test_conventions_of_the_mask() -> None:
    views, latents, given = torch.ones(2, 4, 4, 3), torch.ones(2, 4, 2, 2), torch.tensor([True, False])
    assert masked_pictures(views, given)[1].unique() == 0.5 and masked_pictures(views, given, "paper")[1].unique() == 0
    assert mask_channels(latents, given)[:, 0, 0, 0].tolist() == [0, 1]
    assert mask_channels(latents, given, "paper")[:, 0, 0, 0].tolist() == [1, 0]
    part = torch.zeros(2, 4, 4, dtype=torch.bool)
    part[0, :, :3] = True  # of the right latents one half
    assert mask_channels(latents, part)[:, 0].tolist() == [[[0, 1], [0, 1]], [[1, 1], [1, 1]]]
    assert mask_channels(latents, part, "paper")[0, 0].tolist() == [[1, 0], [1, 0]]
    assert masked_pictures(views, part)[0, :, :, 0].tolist() == [[1, 1, 1, 0.5]] * 4
    condition = given_condition(latents, given)
    assert condition.shape == (2, 5, 2, 2) and condition[0].unique() == 1 and condition[1].unique() == 0
