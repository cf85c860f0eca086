import inspect
from dataclasses import replace
from math import pi, radians
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, T2IAdapter, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from tests.support import parity_files
from tests.support.parity_files import recorded, tensors
from threedgen.geometry.cameras import Cameras, Projection, geometry_control, plucker_rays, ray_control, view_rays
from threedgen.geometry.poses import orbit_c2w, world_to_camera
from threedgen.guidance.attention.decoupled import DecoupledAttnProcessor
from threedgen.guidance.attention.joined import MultiviewAttnProcessor
from threedgen.guidance.guidance import combine
from threedgen.guidance.priors.mvadapter.inputs import ray_maps
from threedgen.guidance.priors.mvadapter.weights import convert_adapter
from threedgen.guidance.sampling import ddim_step
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.saving import scheduler


class Recording:
    """Options and tensors of a recording; names start with "w:" (weights), "in:" (inputs) or "out:" (outputs)."""

    def __init__(self, path: Path) -> None:
        self.options = parity_files.options(path)
        self.tensors = {n: t.float() if t.dtype == torch.float64 else t for n, t in tensors(path).items()}

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, check_dtype=False)


@torch.no_grad()
@recorded("attn_row")
def test_attention_matches_recording(path: Path) -> None:
    recording = Recording(path)
    o, inputs, out = recording.options, recording.under("in:"), recording.under("out:")
    processor = DecoupledAttnProcessor(MultiviewAttnProcessor(), "attn1", o["dim"], ("mv", "ref"), o["processor"])
    rest = {name: o[name] for name in ("residual_connection", "rescale_output_factor")}
    attn = Attention(o["dim"], heads=o["heads"], dim_head=o["dim"] // o["heads"], processor=processor, **rest)
    attn.load_state_dict(recording.under("w:"))
    cases: dict[str, dict[str, Any]] = {
        "plain": {"use_mv": False, "use_ref": False},
        "mv_only": {"use_ref": False},
        "ref_only": {"use_mv": False},
        "full": {},
        "scaled": {"mv_scale": o["mv_scale"], "ref_scale": o["ref_scale"]},
    }
    features = {"attn1": inputs["ref_hidden_states"]}
    size = (o["height"], o["width"])
    for name, options in cases.items():
        views = {"n_view": o["num_views"], "latent_size": size, "ref_hidden_states": features}
        close(attn(inputs["hidden_states"], **views, **options), out[name])


@torch.no_grad()
@recorded("cond_encoder")
def test_condition_guider_matches_recording(path: Path) -> None:
    recording = Recording(path)
    names = ("in_channels", "channels", "num_res_blocks", "downscale_factor", "adapter_type")
    guider = T2IAdapter(**{name: recording.options[name] for name in names})
    guider.load_state_dict(recording.under("w:"))
    for number, feature in enumerate(guider(recording.under("in:")["control"])):
        close(feature, recording.under("out:")[f"feature_{number}"])


@recorded("noise_schedule")
def test_shifted_schedule_matches_recording(path: Path) -> None:
    recording = Recording(path)
    o, out = recording.options, recording.under("out:")
    base = Schedule.from_betas(recording.under("in:")["betas"], o["prediction_type"])
    close(base.alpha_bar, out["alphas_cumprod_base"], 5e-6)
    close(torch.logit(base.alpha_bar.double()), out["snr_base"].double().log(), 1e-3)
    for scale in o["shift_scales"]:
        for mode in o["modes"]:
            shifted, name = base.shifted(scale, mode), f"{mode}_{scale:g}"
            close(shifted.alpha_bar, out[f"alphas_cumprod_{name}"], 5e-6)
            close(shifted.betas, out[f"betas_{name}"], 5e-6)
            stored = DDPMScheduler.from_config(scheduler(shifted).config, steps_offset=0)
            stored.set_timesteps(o["inference_steps"])
            assert torch.equal(stored.timesteps, out[f"timesteps_{name}"])
            close(stored.alphas_cumprod, out[f"alphas_cumprod_{name}"], 5e-6)


@recorded("raymap")
def test_cameras_and_control_maps_match_recording(path: Path) -> None:
    recording = Recording(path)
    o, inputs, out = recording.options, recording.under("in:"), recording.under("out:")
    elevation, azimuth = inputs["elevation_deg"].deg2rad(), (inputs["azimuth_deg"] + o["azimuth_offset"]).deg2rad()
    c2w, size, half = orbit_c2w(elevation, azimuth, inputs["distance"]), o["image_size"], o["ortho_scale"] / 2
    count = len(c2w)
    close(c2w, out["c2w"])
    close(world_to_camera(c2w), out["w2c"])
    flat = Cameras(c2w, Projection.orthographic(torch.full((count,), half), size, size), size, size)
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    pixels, depth = flat.project(points)
    clip = torch.cat([points, torch.ones(5, 1)], 1) @ out["mvp_mtx"].mT
    close(2 * pixels / size - 1, clip[..., :2])
    near, far = o["near"], o["far"]
    close((2 * depth - near - far) / (far - near), clip[..., 2])
    close(view_rays(c2w)[:, :, None, None].expand(-1, -1, size, size), out["raymap_ortho"])
    control = ray_control(view_rays(c2w))[:, :, None, None]
    close(control.expand(-1, -1, size, size), out["control_ortho"])
    ours = orbit_c2w(elevation, azimuth + pi / 2, inputs["distance"])  # the front is x here and -y there
    close(ray_maps(replace(flat, c2w=ours))[..., 0, 0], ray_control(view_rays(c2w)))
    deep = replace(flat, projection=Projection.perspective(torch.full((count,), radians(o["fov_deg"])), size, size))
    close(plucker_rays(deep), out["plucker_persp"])
    close(ray_maps(replace(deep, c2w=ours)), ray_control(out["plucker_persp"]))
    # the reference counts pixels from their corners: its image is half a pixel off
    K = flat.projection.K.clone()
    K[:, :2, 2] += 0.5
    corner = Cameras(c2w, Projection(K, parallel=True), size, size)
    mask = inputs["mask"][..., 0]
    origins, directions = corner.rays()
    found = origins + directions * inputs["depth"]
    close(found * mask[..., None], out["position_map_ortho"])
    scaled = geometry_control(found, torch.zeros_like(found), mask)[:, :3]
    close(scaled.permute(0, 2, 3, 1), out["position_control"])


@torch.no_grad()
@recorded("unet_step")
def test_network_and_ddim_steps_match_recording(path: Path) -> None:
    recording = Recording(path)
    o, inputs, out = recording.options, recording.under("in:"), recording.under("out:")
    weights = recording.under("w:unet:")
    known = inspect.signature(UNet2DConditionModel).parameters
    sizes = {name: value for name, value in o.items() if name in known}
    unet = UNet2DConditionModel(**sizes, down_block_types=o["down"], up_block_types=o["up"])
    unet.load_state_dict({name: tensor for name, tensor in weights.items() if ".processor." not in name})
    network = convert_adapter(weights | recording.under("w:cond_encoder:"), unet, layout=o["processor"])
    n_view, text = o["num_views"], [inputs["negative_prompt_embeds"], inputs["prompt_embeds"]]

    ref_features = network.reference_features(inputs["ref_latents"], text[1])
    for name, expected in recording.under("out:ref:").items():
        close(ref_features[name], expected, 1e-4)
    height, width = inputs["control"].shape[-2:]
    features = network.guide(inputs["control"], height, width)
    assert features is not None
    for number, feature in enumerate(features):
        close(feature, out[f"cond_feature_{number}"], 1e-4)

    schedule = Schedule.scaled_linear().shifted(o["shift_scale"], o["shift_mode"])
    close(schedule.alpha_bar, inputs["alphas_cumprod"], 5e-6)
    x, reference = inputs["latents"], {name: torch.cat([0 * f, f]) for name, f in ref_features.items()}
    both = torch.cat([part.repeat_interleave(n_view, 0) for part in text]), torch.cat([inputs["control"]] * 2)
    alpha_bar, stride = schedule.alpha_bar.double(), schedule.T // o["steps"]
    for step, t in enumerate(out["timesteps"].tolist()):
        eps = network(torch.cat([x, x]), torch.tensor(t), *both, n_view, reference)
        uncond, cond = eps.chunk(2)
        if step == 0:
            close(uncond, out["noise_uncond_step0"], 1e-4)
            close(cond, out["noise_cond_step0"], 1e-4)
        before = alpha_bar[t - stride] if t >= stride else torch.ones(())
        x = ddim_step(x, combine(cond, uncond, o["guidance_scale"]), alpha_bar[t], before)[0]
        close(x, out["latents_traj"][step], 2e-3)
