from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvadapter import BOTH, TOYBOX, awaken
from tests.support.tiny_mvdiffusion import inputs, tiny_base
from threedgen.guidance.guidance import Condition
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet, AdapterSettings, make_guider
from threedgen.guidance.priors.mvadapter.weights import convert_adapter, load_adapter, save_adapter
from threedgen.guidance.weights.plugins import locate


def trained(branches: tuple = BOTH, settings: AdapterSettings | None = None) -> AdaptedUNet:
    network = AdaptedUNet(tiny_base(), 8, settings or AdapterSettings(), branches)
    awaken(network)
    return network.half().float().eval()


@pytest.mark.parametrize("branches", [("mv",), ("mv", "ref"), ("ref",), ()])
@torch.no_grad()
def test_saved_adapter_loads_unchanged(branches: tuple, tmp_path: Path) -> None:
    settings = AdapterSettings("rowcol", "serial", "geometry", 6.0, "default", timestep="matched")
    network = trained(branches, settings)
    save_adapter(tmp_path / "a.safetensors", network)
    base = tiny_base().half().float()
    loaded = load_adapter(tmp_path / "a.safetensors", base)
    assert loaded.settings == settings and loaded.branches == branches
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    x, t, text = inputs(6)
    control = torch.rand(6, 6, 1, 1)
    assert torch.equal(loaded(x, t, text, control, 6), network(x, t, text, control, 6))
    changed = load_adapter(tmp_path / "a.safetensors", base, layout="row", shift=None).settings
    assert changed == AdapterSettings("row", "serial", "geometry", 6.0, "default", timestep="matched")


def test_saved_file_has_released_names_without_base(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.safetensors", trained())
    names = load_file(tmp_path / "a.safetensors").keys()
    attn = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    every = [f"{attn}.to_{kind}_{branch}" for kind in "qkv" for branch in BOTH]
    every += [f"{attn}.to_out_{branch}.0" for branch in BOTH] + ["adapter.conv_in", "adapter.body.1.resnets.0.block2"]
    assert {f"{name}.weight" for name in every} <= names
    assert not any(name.startswith("conv_in") or "attn2" in name or ".to_q." in name for name in names)


def released() -> dict[str, Tensor]:
    return trained().adapter_state() | {"unet_ema.decay": torch.ones(1)}


def test_released_file_gets_default_form_and_unused_tensors_warn(tmp_path: Path, caplog) -> None:
    save_file({name: tensor.clone() for name, tensor in released().items()}, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors", tiny_base()).settings == AdapterSettings()
    assert "unet_ema.decay" in caplog.text


@pytest.mark.parametrize(
    ("change", "base", "values"),
    [
        ({"adapter.conv_in.bias": None}, {}, [1, "adapter.conv_in.bias"]),
        ({"adapter.new": torch.ones(1)}, {}, [1, "adapter.new"]),
        ({"adapter.conv_in.bias": torch.ones(7)}, {}, [1, "adapter.conv_in.bias"]),
        ({"adapter.conv_in.bias": torch.full((32,), torch.nan)}, {}, ["adapter.conv_in.bias"]),
        ({"mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_k_ref.weight": None}, {}, [1, "to_k_ref"]),
        ({}, TOYBOX, ["to_q_mv"]),
        ({}, {"block_out_channels": (64, 64)}, ["to_q_mv"]),
    ],
)
def test_convert_adapter_refuses_tensors_that_do_not_fit(
    change: dict[str, Tensor | None], base: dict[str, Any], values: list[Any]
) -> None:
    tensors = {name: tensor for name, tensor in (released() | change).items() if tensor is not None}
    with refused(None, *values):
        convert_adapter(tensors, tiny_base(**base))


def test_convert_adapter_recognises_depth_and_downscale_of_guider() -> None:
    deep = convert_adapter(AdaptedUNet(tiny_base(), depth=3).adapter_state(), tiny_base())
    assert len(deep.guider.adapter.body[0].resnets) == 3
    small = AdaptedUNet(tiny_base(), branches=("mv",), downscale=2)
    found = convert_adapter(small.adapter_state(), tiny_base())
    assert (found.guider.downscale_factor, found.size_multiple) == (2, 8)


def test_load_adapter_refuses_a_base_with_another_text_width(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.safetensors", trained())
    with refused("adapter", 16, 20):
        load_adapter(tmp_path / "a.safetensors", tiny_base(cross_attention_dim=20))


@pytest.mark.parametrize(
    ("card", "values"),
    [
        ({"layout": "full"}, ["layout", "full", "rowcol"]),
        ({"shift": "0.5"}, ["shift", 0.5, 1]),
        ({"fov": "nan"}, ["fov", "nan"]),
    ],
)
def test_metadata_of_adapter_file_is_checked(card: dict[str, str], values: list[Any]) -> None:
    with refused("adapter", *values):
        convert_adapter(released(), tiny_base(), card=card)


@pytest.mark.parametrize(("kind", "name"), [("adapter", "nowhere.safetensors"), ("blocks", "toybox-pano")])
def test_locate_refuses_unknown_names(kind: str, name: str) -> None:
    with refused(kind, name):
        locate(kind, name)


SD: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280)}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
}


def control(views: int, height: int = 1, width: int = 1) -> torch.Tensor:
    return torch.rand(views, 6, height, width, generator=torch.Generator().manual_seed(2))


def millions(*modules: torch.nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


@pytest.mark.parametrize(("config", "attention", "guider"), [(SD, 49.574, 77.922), (SDXL, 409.683, 81.240)])
def test_adapters_of_released_bases_have_published_size(config: Any, attention: float, guider: float) -> None:
    with torch.device("meta"):
        network = AdaptedUNet(UNet2DConditionModel(**config), branches=("mv",))
    *processors, found = network.new_parts
    assert len(processors) == (16 if config is SD else 70)
    assert millions(*processors) == pytest.approx(attention, abs=1e-3)
    assert millions(found) == pytest.approx(guider, abs=1e-3)


@torch.no_grad()
def test_downscaled_guider_matches_on_constant_blocks() -> None:
    base = tiny_base(**TOYBOX)
    whole, less = make_guider(base), make_guider(base, downscale=4)
    weight: torch.Tensor = whole.adapter.conv_in.weight  # type: ignore[assignment]
    summed = weight.unflatten(1, (6, 4, 4, 4, 4)).sum((3, 5)).flatten(1, 3)
    less.load_state_dict(whole.state_dict() | {"adapter.conv_in.weight": summed})
    network = AdaptedUNet(base, branches=())
    blocks = control(2, 8, 12).repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = []
    for network.guider in (whole, less):
        assert network.size_multiple == 16
        found.append([network.guide(maps, 32, 48) for maps in (control(2), blocks)])
    torch.testing.assert_close(*found)
    with refused(None, 16, 5, kind=ValueError):
        make_guider(base, downscale=5)


@pytest.mark.parametrize("config", [{}, TOYBOX])
def test_fine_guider_acts_on_first_layer(config: Any) -> None:
    network = AdaptedUNet(tiny_base(**config), branches=("mv",))
    x, t, text = inputs(3, size=(4, 10))
    maps = control(3, 32, 80)
    before = network(x, t, text, maps, 3)
    network.add_fine_guider()
    assert network.fine is not None
    assert torch.equal(network(x, t, text, maps, 3), before)
    assert len(network.new_parts) == len(AdaptedUNet(tiny_base(**config), branches=("mv",), fine=True).new_parts)
    network.fine[-1].weight.data.fill_(0.01)
    assert (network(x, t, text, maps, 3) - before).abs().max() > 1e-4
    assert torch.equal(network(x, t, text, None, 3), network(x, t, text, None, 3))
    assert not network.unet.conv_in._forward_hooks
    back = convert_adapter(network.adapter_state(), tiny_base(**config))
    torch.testing.assert_close(back(x, t, text, maps, 3), network(x, t, text, maps, 3))


@pytest.mark.parametrize("config", [{}, TOYBOX])
@pytest.mark.parametrize("downscale", [8, 4])
def test_gradients_reach_only_the_adapter(config: Any, downscale: int) -> None:
    network = AdaptedUNet(tiny_base(**config), downscale=downscale)
    awaken(network)
    x, t, text = inputs(3)
    features = network.reference_features(x[:1], text[:1])
    network(x, t, text, control(3), 3, features).square().mean().backward()
    new = {id(parameter) for parameter in network.new_parts.parameters()}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (id(parameter) in new), name
    assert new == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}


@torch.no_grad()
def test_objects_and_guidance_halves_are_independent() -> None:
    network = AdaptedUNet(tiny_base())
    awaken(network)
    x, t, text = inputs(6, size=(4, 6))
    maps, features = control(6), network.reference_features(x[:2], text[:2])
    both = Condition((text, text), reference=features).reference_kwargs(True, False)["reference"]
    together = network(torch.cat([x, x]), t[0], torch.cat([text, text]), torch.cat([maps, maps]), 3, both)
    first = {name: tensor[:1] for name, tensor in features.items()}
    torch.testing.assert_close(network(x[:3], t[0], text[:3], maps[:3], 3, first), together[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close(network(x, t[0], text, maps, 3), together[6:], atol=1e-5, rtol=0)
