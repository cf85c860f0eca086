import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.task_server import server, tiny_generate, weights
from tests.support.toy_run import log
from threedgen.representations.gaussians.density_control import PARAMETERS, split_equally
from threedgen.representations.gaussians.field import Gaussians
from threedgen.representations.options import GaussiansConfig
from threedgen.testing import render_views, seeded

ADAPTIVE: dict[str, Any] = {"interval": 1, "densify_range": (0, 1), "split_gradient": 1.0, "reset_interval": None}


def made(**values: Any) -> tuple[Gaussians, torch.optim.Adam]:
    """Return Gaussians and an optimizer with distinct moments for each of them, after one step."""
    field = Gaussians(GaussiansConfig(**({"count": 10, "max_count": 100} | values)), seeded(0))
    optimizer = torch.optim.Adam([{"params": group.parameters, "lr": 0.0} for group in field.parameter_groups()])
    rows = torch.arange(1.0, 11.0)
    for parameter in field.parameters():
        parameter.grad = rows.view(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter).clone()
    optimizer.step()
    field.before_step(0, 10)
    return field, optimizer


def moments(field: Gaussians, optimizer: torch.optim.Adam, name: str = "means") -> list[float]:
    """Return Adam's first moment of each Gaussian, divided by that of the first one before any change."""
    parameter = getattr(field, name)
    state = optimizer.state[parameter]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
    return (state["exp_avg"].view(len(parameter), -1)[:, 0] / 0.1).round(decimals=3).tolist()


def in_optimizer(field: Gaussians, optimizer: torch.optim.Adam) -> bool:
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {id(p) for p in held} == {id(p) for p in field.parameters()} == {id(p) for p in optimizer.state}


def test_small_gaussians_are_cloned_large_ones_split_and_transparent_ones_removed() -> None:
    field, optimizer = made(**ADAPTIVE, clone_size=0.01)
    with torch.no_grad():
        field.log_scales[:5] = math.log(0.005)
        field.log_scales[5:] = torch.tensor([0.03, 0.03, 0.06]).log()
        field.opacity_logits[9] = -9.0
    field.gradient_count += 2
    field.gradient_sum[[1, 7, 9]] = 4.0  # 9 is transparent
    field.gradient_sum[3] = 1.0  # a mean of 0.5 is below the threshold
    before = {name: getattr(field, name).detach().clone() for name in PARAMETERS}
    field.after_step(0, optimizer)
    assert {len(parameter) for parameter in field.parameters()} == {11} and in_optimizer(field, optimizer)
    kept = [0, 1, 2, 3, 4, 5, 6, 8]
    for name in PARAMETERS:
        after = getattr(field, name).detach()
        assert torch.equal(after[:8], before[name][kept]) and torch.equal(after[8], before[name][1])
        assert moments(field, optimizer, name) == [k + 1 for k in kept] + [0, 0, 0]
    torch.testing.assert_close(field.log_scales[9:].exp(), torch.tensor([[0.03, 0.03, 0.06]] * 2) / 1.6)
    assert 0 < (field.means[9:] - before["means"][7]).norm(dim=-1).max() < 0.4
    assert torch.equal(field.opacity_logits[9:], before["opacity_logits"][[7, 7]])
    assert field.gradient_sum.tolist() == field.gradient_count.tolist() == [0.0] * 11


def test_room_is_for_the_largest_gradients() -> None:
    field, optimizer = made(**(ADAPTIVE | {"max_count": 12}))
    field.gradient_count += 1
    field.gradient_sum[:] = torch.arange(10.0) + 2
    field.after_step(0, optimizer)
    assert len(field.means) == 12 and sorted(moments(field, optimizer)) == [0] * 4 + list(range(1, 9))


def test_split_keeps_to_the_axes_of_the_gaussian() -> None:
    """Parts of a Gaussian that is long along x, turned by 90 degrees about z, lie along y."""
    field, optimizer = made(**ADAPTIVE, clone_size=0.0, max_size=1.0)
    with torch.no_grad():
        field.means.zero_()
        field.log_scales[:] = torch.tensor([0.3, 1e-3, 1e-3]).log()
        field.quaternions[:] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    field.gradient_sum += 5.0
    field.gradient_count += 1
    field.after_step(0, optimizer)
    spread = field.means.detach().std(dim=0)
    assert len(field.means) == 20 and spread[1] > 0.1 and spread[0] < 0.01 and spread[2] < 0.01


def test_opacity_reset_limits_opacities_and_forgets_their_moments() -> None:
    field, optimizer = made(**(ADAPTIVE | {"interval": 5, "reset_interval": 1}), min_opacity=0.01)
    with torch.no_grad():
        field.opacity_logits[:] = torch.linspace(0.005, 0.9, 10).logit()
    field.after_step(0, optimizer)
    opacity = field.opacity_logits.detach().sigmoid()
    torch.testing.assert_close(opacity, torch.linspace(0.005, 0.9, 10).clamp(max=0.02))
    assert moments(field, optimizer, "opacity_logits") == [0] * 10 and in_optimizer(field, optimizer)
    assert moments(field, optimizer) == list(range(1, 11))


def test_densification_is_limited_to_its_part_of_the_run() -> None:
    field, optimizer = made(**(ADAPTIVE | {"densify_range": (0.2, 0.5)}))
    sizes = []
    for step in range(8):
        field.before_step(step, 10)
        field.gradient_sum, field.gradient_count = (field.means.new_ones(len(field.means)) * k for k in (5.0, 1.0))
        field.after_step(step, optimizer)
        sizes.append(len(field.means))
    assert sizes == [10, 20, 40, 80, 100, 100, 100, 100]


def test_gradients_are_measured_in_the_image() -> None:
    """The sum counts views that show a Gaussian; one behind the cameras has none."""
    field, _ = made(interval=100)
    with torch.no_grad():
        field.means[0] = 50.0
    result = render_views(field, 1.0, seeded(0))
    result.rgb.square().sum().backward()
    field.after_step(0, torch.optim.Adam(field.parameters()))
    assert field.gradient_count.tolist() == [0.0] + [2.0] * 9
    assert field.gradient_sum[0] == 0 and (field.gradient_sum[1:] > 0).all()


def test_step_without_finite_gradients_does_not_count() -> None:
    field, optimizer = made(interval=100)
    for factor in (math.nan, math.inf):
        (factor * render_views(field, 1.0, seeded(0)).rgb.sum()).backward()
        field.after_step(0, optimizer)
    assert not field.gradient_sum.any() and not field.gradient_count.any()


# --- MCMC


def test_shared_opacity_composites_to_the_opacity_of_one() -> None:
    opacity, shares = torch.tensor([0.3, 0.9, 0.5, 0.99]), torch.tensor([1, 2, 5, 51])
    each, factor = split_equally(opacity, shares)
    torch.testing.assert_close(1 - (1 - each) ** shares, opacity, atol=1e-5, rtol=1e-5)
    assert factor[0] == 1 and (factor[1:] < 1).all()
    # equation 9 for two shares, written out: o / (o' + o' - o'^2 / sqrt 2)
    o = float(each[1])
    assert float(factor[1]) == pytest.approx(0.9 / (2 * o - o * o / math.sqrt(2)), rel=1e-5)


def test_dead_gaussians_move_to_living_ones() -> None:
    field, optimizer = made(densify="mcmc", interval=1, densify_range=(0, 1), noise=0.0, max_count=10)
    with torch.no_grad():
        field.opacity_logits[:] = torch.tensor(0.4).logit()
        field.opacity_logits[:3] = -9.0
    before = field.means.detach().clone()
    light = field.opacity_logits[3:].detach().sigmoid()
    field.after_step(0, optimizer)
    assert len(field.means) == 10 and in_optimizer(field, optimizer)
    places = [next(k for k in range(10) if torch.equal(mean, before[k])) for mean in field.means.detach()]
    assert set(places) == set(range(3, 10)), "all are where a living one was"
    opacity = field.opacity_logits.detach().sigmoid()
    for place in set(places):
        together = 1 - (1 - opacity[[k for k in range(10) if places[k] == place]]).prod()
        torch.testing.assert_close(together, light[place - 3], atol=1e-5, rtol=1e-5)
    assert sorted(moments(field, optimizer))[:4] == [0] * 4, "those that share start without moments"


def test_noise_moves_transparent_gaussians_along_their_axes() -> None:
    field, optimizer = made(densify="mcmc", interval=100, noise=1.0)
    optimizer.param_groups[0]["lr"] = 10.0
    with torch.no_grad():
        field.log_scales[:] = torch.tensor([0.1, 0.001, 0.001]).log()
        field.opacity_logits[:5], field.opacity_logits[5:] = -9.0, 2.0
    before = field.means.detach().clone()
    field.after_step(0, optimizer)
    moved = (field.means.detach() - before).abs()
    assert (moved[:5, 0] > 1e-3).all() and moved[:5, 1:].max() < 1e-4 and moved[5:].max() < 1e-6


# --- resume


def whole_and_resumed(tmp_path: Path, field: dict[str, Any], stop: int) -> tuple[dict[str, Tensor], ...]:
    """Return the weights of a run, of one that was killed at step `stop`, and of the latter when it was resumed."""
    short = ["warm_start.share=0", "refine.strengths=[]", "preview.enabled=false", "export.enabled=false", "out=run"]
    places = [tmp_path / name for name in ("whole", "half")]
    commands = []
    for place in places:
        place.mkdir()
        commands.append(["--config", str(tiny_generate(place / "tiny", field=field)), *short, "trainer.max_steps=8"])
    assert server().run(places[0], words=commands[0]) == 0, log(places[0])
    words = [*commands[1], "checkpoint.seconds=1000"]
    assert server().signalled(places[1], signal.SIGTERM, words=words, hold_at=stop) == 143, log(places[1])
    half = weights(places[1] / "run")
    assert server().run(places[1], words=["--resume", "run"]) == 0, log(places[1])
    return weights(places[0] / "run"), half, weights(places[1] / "run")


def test_killed_run_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    """Across a clone, a prune and an opacity reset, before and after the kill."""
    field = {"name": "gaussians", "count": 40, "max_count": 200, "interval": 2, "split_gradient": 1e-12}
    field |= {
        "densify": "adaptive",
        "densify_range": [0, 1],
        "reset_interval": 3,
        "lr_opacities": 0.5,
        "min_opacity": 0.09,
    }
    whole, half, resumed = whole_and_resumed(tmp_path, field, stop=4)
    counts = [len(state["field.means"]) for state in (half, whole)]
    assert counts[0] != 40 and counts[1] != counts[0]
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
