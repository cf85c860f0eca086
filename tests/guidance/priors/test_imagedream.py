from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.errors import refused
from tests.support.parity_files import close
from tests.support.script_poses import script_poses
from tests.support.tiny_imagedream import imagedream_file, imagedream_folder, recording
from tests.support.tiny_prior import cpu, letter_tokenizer, tiny_text_encoder, tiny_vae
from threedgen.guidance.guidance import Condition, predict
from threedgen.guidance.priors import imagedream, mvdream
from threedgen.guidance.priors.imagedream import FEATURES, LATENTS, ImageDream
from threedgen.guidance.priors.options import ImageDreamConfig, MVDreamConfig
from threedgen.guidance.weights import components, ldm
from threedgen.guidance.weights.loading import IMAGE_ENCODER
from threedgen.guidance.weights.meta_networks import meta_networks

Recorded = tuple[dict[str, Tensor], ImageDream]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """Recorded arrays, and a prior with the weights of the recording."""
    arrays, unet, visual = recording()
    encoder = components.build_network(IMAGE_ENCODER, *ldm.convert_image_encoder(visual))
    parts = components.build_network("unet", *ldm.convert_unet(unet)), tiny_vae(), tiny_text_encoder(100)
    return arrays, ImageDream(*parts, letter_tokenizer(), image_encoder=encoder, dtype="fp32")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> ImageDream:
    """A prior from a file in the released format, with a red square as its image."""
    folder = tmp_path_factory.mktemp("imagedream")
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[2:12, 3:13] = (220, 20, 20, 255)
    Image.fromarray(pixels).save(folder / "car.png")
    options = {"weights": str(imagedream_file(folder)), "tokenizer": str(folder / "clip"), "image_size": 16}
    config = ImageDreamConfig(**options, image=str(folder / "car.png"), dtype="fp32")
    config.check()
    return imagedream.build(config)


@torch.no_grad()
def test_image_features_match_the_recording(recorded: Recorded) -> None:
    arrays, prior = recorded
    close(prior.image_features(arrays["picture"].float()[None] / 255), arrays["hidden"], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("controller", ["pixel", "local"])
def test_predictions_match_the_recording(recorded: Recorded, controller: str) -> None:
    """Conditional and unconditional branch of four views; the largest difference was 2.4e-6."""
    arrays, prior = recorded
    prior.pixel_control = controller == "pixel"
    cond, uncond = arrays[controller].chunk(2)
    x, other = arrays["x"].chunk(2)
    text = (arrays["context"][:1], arrays["context"][1:])
    reference = {FEATURES: arrays["features"], LATENTS: arrays["latents"]}
    condition = Condition(text, arrays["camera"], 4, reference=reference)
    _, eps = predict(prior.denoise, x, arrays["t"][:1], condition, 5.0)
    close(eps, cond, 5e-6)
    reference = {name: torch.zeros_like(image) for name, image in reference.items()}
    eps = prior.denoise(other, arrays["t"][:1], text[1].expand(4, -1, -1), arrays["camera"], 4, reference=reference)
    close(eps, uncond, 5e-6)


@torch.no_grad()
def test_diffusers_folder_is_the_file(prior: ImageDream, tmp_path: Path) -> None:
    folder = imagedream_folder(tmp_path / "folder")
    other = ImageDream.load(str(folder), dtype="fp32", image_size=16)
    other.images = prior.images
    x, camera = torch.randn(4, 4, 8, 8, generator=cpu()), prior.camera(script_poses(4))
    outputs = []
    for one in (prior, other):
        text = one.encode_prompt(["a car"])
        outputs.append(
            one.denoise(x, torch.tensor(500), text.expand(4, -1, -1), camera, 4, **{"reference": one.reference(text)})
        )
    torch.testing.assert_close(*outputs)
    seen = meta_networks(str(folder), ImageDreamConfig.parts)
    assert seen.image_encoder is not None
    for network, loaded in ((seen.unet, other.unet), (seen.image_encoder, other.image_encoder)):
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in loaded.state_dict().items()}


@torch.no_grad()
def test_image_gets_the_background_of_the_renders(prior: ImageDream) -> None:
    small, large = prior.images
    assert small.shape == (28, 28, 4) and large.shape == (16, 16, 4)
    covered = large[..., 3] > 0.5
    rows, columns = covered.nonzero(as_tuple=True)
    assert 10 <= rows.max() - rows.min() + 1 <= 12 and abs(int(rows.max() + rows.min()) - 15) <= 1
    assert abs(int(columns.max() + columns.min()) - 15) <= 1
    text = prior.encode_prompt(["a car"])
    grey, same, white = (prior.reference(text, level) for level in (None, torch.tensor(0.5), torch.tensor(1.0)))
    assert grey is not None and same is not None and white is not None
    for name in (FEATURES, LATENTS):
        assert torch.equal(grey[name], same[name]) and (grey[name] - white[name]).abs().max() > 1e-3


def test_weights_of_another_prior_are_refused(tmp_path: Path) -> None:
    path = imagedream_file(tmp_path)
    options: dict[str, Any] = {"weights": str(path), "tokenizer": str(tmp_path / "clip")}
    with refused("weights", "imagedream"):
        mvdream.build(MVDreamConfig(**options))
    torch.save({name: t for name, t in torch.load(path).items() if ".visual." not in name}, path)
    with refused("weights", "clip_model.model.visual"):
        ImageDream.load(**options)
    for more, key in (({}, "image"), ({"image": "a.png", "draft": 0.3}, "draft")):
        with refused(key):
            ImageDreamConfig(**options, **more).check()
