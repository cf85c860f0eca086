from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvadapter import BOTH, TOYBOX, adapted_model, awaken, tiny_model, tiny_prior_config
from tests.support.tiny_mvdiffusion import inputs, tiny_base
from tests.support.tiny_prior import (
    coarse_prior,
    cpu,
    tiny_coarse,
    tiny_prior,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
    word_tokenizer,
)
from threedgen.config.registry import build
from threedgen.geometry.rigs import orbit
from threedgen.guidance.guidance import Condition
from threedgen.guidance.losses.options import SDSConfig
from threedgen.guidance.losses.sds import SDS
from threedgen.guidance.options import Shift
from threedgen.guidance.priors.mvadapter.inputs import GEOMETRY_VIEWS, RAY_VIEWS, cameras_from_angles, ray_maps
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet, AdapterSettings, make_guider
from threedgen.guidance.priors.mvadapter.weights import convert_adapter, load_adapter, save_adapter
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.options import MVAdapterConfig

PROMPT = "a red dog"
C2W = cameras_from_angles(RAY_VIEWS[:3], 16, 16).c2w


def test_perspective_adapter_takes_rays_from_the_distance_of_its_training() -> None:
    model = adapted_model(AdapterSettings(fov=40.0))
    cameras = cameras_from_angles(RAY_VIEWS, model.image_size, model.image_size, 40.0)
    far = cameras.c2w.clone()
    far[:, :3, 3] *= 2
    torch.testing.assert_close(model.camera(far), ray_maps(cameras))


@torch.no_grad()
def test_single_image_without_camera_equals_base() -> None:
    base, model = tiny_model(), adapted_model()
    x, t, text = torch.randn(2, 4, 8, 8, generator=cpu()), torch.tensor([300, 700]), base.encode_prompt([PROMPT])
    text = text.expand(2, -1, -1)
    expected = base.denoise(x, t, text, base.camera(C2W[:2]), 2)
    assert torch.equal(model.denoise(x, t, text), expected)
    assert (model.denoise(x, t, text, model.camera(C2W[:2]), 2) - expected).abs().max() > 1e-3


def test_prior_follows_reference_image_and_its_scale() -> None:
    """In samples and in gradients of a distillation, for more views than the reference."""
    model, text, rng = adapted_model(), tiny_model().encode_prompt([PROMPT, ""]).split(1), np.random.default_rng(0)
    rig = orbit(4, 0.2, 2.0, 0.8, 16, 16)
    latents = torch.randn(4, 4, 8, 8, generator=cpu())
    cut = [rng.random((9, 12, 4), np.float32) for _ in range(2)]

    def gradient_and_sample() -> tuple[Tensor, Tensor]:
        condition = Condition(text, model.camera(rig.c2w), 4, reference=model.reference(text[0]))
        z = latents.clone().requires_grad_()
        SDS(SDSConfig(), model.schedule, 100)(z, model.denoise, condition, 0, cpu())[0].backward()
        sample = model.sample(PROMPT, rig.c2w, generator=cpu(), steps=1, guidance_scale=3.0)
        assert z.grad is not None and sample.shape == (4, 16, 16, 3)
        return z.grad, sample

    assert model.reference(text[0]) is None
    results = [gradient_and_sample()]
    for image in cut:
        model.with_reference(image)
        results.append(gradient_and_sample())
    for first, second in ((0, 1), (1, 2)):
        for a, b in zip(results[first], results[second], strict=True):
            assert (a - b).abs().max() > 1e-5
    with refused("adapter"):
        adapted_model(branches=("mv",)).with_reference(cut[0])


@pytest.mark.parametrize("mode", get_args(Shift))
@torch.no_grad()
def test_matched_timesteps_have_equal_noise_in_base_schedule(mode: Shift) -> None:
    base = tiny_model()
    own = base.schedule
    model = adapted_model(AdapterSettings(shift_mode=mode, timestep="matched"))
    assert torch.equal(model.with_network(model.adapted).schedule.betas, model.schedule.betas), "not shifted again"
    assert torch.allclose(own.timesteps_in(own), torch.arange(own.T).float())
    matched, t = model.schedule.timesteps_in(own), torch.tensor([3, 250, 600])
    assert bool((matched >= torch.arange(own.T)).all()) and matched.diff().min() >= 0 and matched[-1] == own.T - 1
    low, high = (own.alpha_bar[rounded.long()] for rounded in (matched[t].ceil(), matched[t].floor()))
    assert bool((low <= model.schedule.alpha_bar[t]).all() and (model.schedule.alpha_bar[t] <= high).all())
    x, text = torch.randn(3, *base.latent_shape, generator=cpu()), base.encode_prompt([PROMPT] * 3)
    assert torch.equal(model.network(x, t, text), base.network(x, matched[t], text))


def test_config_builds_model_with_and_without_adapter(tmp_path: Path) -> None:
    options = MVAdapterConfig(**tiny_prior_config(tmp_path, mv_scale=0.5))
    options.check()
    model: MVAdapter = build("prior", options)
    assert model.adapted is not None and model.adapted.settings == AdapterSettings() and model.adapted.mv_scale == 0.5
    base = build("prior", options.model_copy(update={"adapter": None}))
    assert base.adapted is None and base.sample(PROMPT, C2W, steps=1).shape == (3, 16, 16, 3)
    with refused("adapter", "nowhere.safetensors"):
        options.model_copy(update={"adapter": "nowhere.safetensors"}).check()


def test_samples_start_from_coarse_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse_prior().save(tmp_path / "prior")
    options = MVAdapterConfig(**tiny_prior_config(tmp_path, guess=str(tmp_path / "prior")))
    options.check()
    model = build("prior", options)
    monkeypatch.setattr(model, "decode_latents", lambda z: z.permute(0, 2, 3, 1))  # decoding enlarges differences
    rng: Any = {"steps": 1, "guidance_scale": 1.0, "generator": cpu()}
    init, control = model.init_latents(PROMPT, C2W, generator=rng["generator"]), model.camera(C2W)
    near = model.sample_views(PROMPT, control, init=init._replace(strength=0.001), **rng)
    noise = model.sample_views(PROMPT, control, **rng)
    near_error, noise_error = ((s - init.latents.permute(0, 2, 3, 1)).abs().mean() for s in (near, noise))
    assert near_error < 0.2 * noise_error
    torch.testing.assert_close(model.sample(PROMPT, C2W, init_strength=0.001, **rng | {"generator": cpu()}), near)
    other = model.init_latents("a blue cat", C2W)
    assert not torch.equal(other.latents, init.latents) and not torch.equal(init.latents[0], init.latents[2])
    assert model.init_latents(PROMPT, C2W, (16, 24)) is None, "another size"
    assert model.coarse_latents(model.encode_prompt([PROMPT]), None) is None, "no camera"
    model.with_reference(np.ones((16, 16, 4), np.float32))
    of_mesh = adapted_model(AdapterSettings("rowcol", control="geometry"), ("mv",))
    of_mesh.coarse_predictor = model.coarse_predictor
    assert model.init_latents(PROMPT, C2W) is None and of_mesh.init_latents(PROMPT, C2W) is None


def test_build_refuses_unusable_coarse_predictors_and_multi_view_base(tmp_path: Path) -> None:
    tiny_prior().save(tmp_path / "plain")
    torch.manual_seed(9)
    parts = tiny_unet(in_channels=8, out_channels=4), tiny_vae(), tiny_text_encoder(), word_tokenizer()
    torch.nn.init.normal_(parts[2].get_input_embeddings().weight)
    MVDream(*parts, coarse=tiny_coarse(), dtype="fp32").save(tmp_path / "other")
    for name, value in (("plain", "toybox-prior"), ("other", "text_encoder")):
        options = MVAdapterConfig(**tiny_prior_config(tmp_path, guess=str(tmp_path / name)))
        with refused("guess", tmp_path / name, value):
            build("prior", options)
    with refused("guess", "nothing/here/at/all"):
        MVAdapterConfig(**tiny_prior_config(tmp_path, guess="nothing/here/at/all")).check()
    with refused("weights", "toybox-base"):
        MVAdapter(*parts, coarse=tiny_coarse())


@pytest.mark.parametrize("fov", [0.0, 90.0])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16)])
def test_cameras_see_the_whole_mesh(fov: float, size: tuple[int, int]) -> None:
    corner = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, -0.5, 0.0]])
    pixels, depth = cameras_from_angles(GEOMETRY_VIEWS, *size, fov).project(corner)
    assert (pixels > 0).all() and (pixels < torch.tensor(size[::-1])).all() and (depth > 0).all()


# --- the network and its file


def trained(settings: AdapterSettings | None = None) -> AdaptedUNet:
    network = AdaptedUNet(tiny_base(), 8, settings or AdapterSettings())
    awaken(network)
    return network.half().float().eval()


@torch.no_grad()
def test_saved_adapter_loads_unchanged(tmp_path: Path) -> None:
    settings = AdapterSettings("rowcol", "serial", "geometry", 6.0, "default", timestep="matched")
    network = trained(settings)
    save_adapter(tmp_path / "a.safetensors", network)
    base = tiny_base().half().float()
    loaded = load_adapter(tmp_path / "a.safetensors", base)
    assert loaded.settings == settings and loaded.branches == BOTH
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    x, t, text = inputs(6)
    control = torch.rand(6, 6, 1, 1)
    assert torch.equal(loaded(x, t, text, control, 6), network(x, t, text, control, 6))
    changed = load_adapter(tmp_path / "a.safetensors", base, layout="row", shift=None).settings
    assert changed == AdapterSettings("row", "serial", "geometry", 6.0, "default", timestep="matched")
    with refused("adapter", 16, 20):
        load_adapter(tmp_path / "a.safetensors", tiny_base(cross_attention_dim=20))


def released() -> dict[str, Tensor]:
    return trained().adapter_state() | {"unet_ema.decay": torch.ones(1)}


def test_released_file_gets_default_form_and_unused_tensors_warn(tmp_path: Path, caplog) -> None:
    save_file({name: tensor.clone() for name, tensor in released().items()}, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors", tiny_base()).settings == AdapterSettings()
    assert "unet_ema.decay" in caplog.text


@pytest.mark.parametrize(
    ("change", "base", "card", "values"),
    [
        ({"adapter.conv_in.bias": None}, {}, {}, [1, "adapter.conv_in.bias"]),
        ({"adapter.new": torch.ones(1)}, {}, {}, [1, "adapter.new"]),
        ({"adapter.conv_in.bias": torch.ones(7)}, {}, {}, [1, "adapter.conv_in.bias"]),
        ({"adapter.conv_in.bias": torch.full((32,), torch.nan)}, {}, {}, ["adapter.conv_in.bias"]),
        ({}, TOYBOX, {}, ["to_q_mv"]),
        ({}, {}, {"layout": "full"}, ["layout", "full", "rowcol"]),
        ({}, {}, {"fov": "nan"}, ["fov", "nan"]),
    ],
)
def test_convert_adapter_refuses_what_does_not_fit(change, base, card, values) -> None:
    tensors = {name: tensor for name, tensor in (released() | change).items() if tensor is not None}
    with refused("adapter" if card else None, *values):
        convert_adapter(tensors, tiny_base(**base), card=card)


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


@pytest.mark.parametrize(("config", "attention", "guider"), [(SD, 49.574, 77.922), (SDXL, 409.683, 81.240)])
def test_adapters_of_released_bases_have_published_size(config: Any, attention: float, guider: float) -> None:
    with torch.device("meta"):
        network = AdaptedUNet(UNet2DConditionModel(**config), branches=("mv",))
    *processors, found = network.new_parts
    assert len(processors) == (16 if config is SD else 70)
    for modules, millions in ((processors, attention), ([found], guider)):
        count = sum(p.numel() for module in modules for p in module.parameters())
        assert count / 1e6 == pytest.approx(millions, abs=1e-3)


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
    before, plain = network(x, t, text, maps, 3), network(x, t, text, None, 3)
    network.add_fine_guider()
    assert network.fine is not None
    assert torch.equal(network(x, t, text, maps, 3), before)
    assert len(network.new_parts) == len(AdaptedUNet(tiny_base(**config), branches=("mv",), fine=True).new_parts)
    network.fine[-1].weight.data.fill_(0.01)
    assert (network(x, t, text, maps, 3) - before).abs().max() > 1e-4
    assert torch.equal(network(x, t, text, None, 3), plain)
    assert not network.unet.conv_in._forward_hooks
    back = convert_adapter(network.adapter_state(), tiny_base(**config))
    torch.testing.assert_close(back(x, t, text, maps, 3), network(x, t, text, maps, 3))


@pytest.mark.parametrize(("config", "downscale"), [({}, 8), (TOYBOX, 4)])
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
