import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models import UNet2DConditionModel

from tests.support.errors import refused
from tests.support.task_server import TINY_PRIOR, write_config
from tests.support.tiny_prior import coarse_prior, tiny_prior, tiny_vae
from threedgen import config
from threedgen.data.latent_cache import LatentCache
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.toybox.data.pictures import Photographs, ViewRings
from threedgen.toybox.training import autoencoder, text_encoder
from threedgen.toybox.training import system as training_system
from threedgen.toybox.training.networks import widen
from threedgen.toybox.training.options import AutoencoderConfig, TrainPriorConfig, WordsConfig
from threedgen.toybox.training.system import PriorSystem
from threedgen.toybox.world.toybox import Toybox


def load_prior_config(folder: Path, *words: str) -> TrainPriorConfig:
    found: TrainPriorConfig = config.load(write_config(folder / "tiny.yaml", TINY_PRIOR), list(words))
    return found


def caches(folder: Path, vae: Any, size: int = 16) -> list[tuple[float, LatentCache]]:
    """Return caches of single images and of two views of objects with their shares of the steps."""
    single = LatentCache(folder / "latents", Photographs(5), vae, size, 40)
    return [(0.3, single), (0.7, LatentCache(folder / "objects", ViewRings(Toybox(5), 2), vae, size, 20))]


@pytest.fixture
def standard_vae() -> AutoencoderKL:
    vae = tiny_vae()
    autoencoder.standardise(vae, torch.from_numpy(Photographs(5).render_examples(range(16), 16).rgb))
    return vae


def test_processes_train_the_autoencoder_on_different_images(standard_vae: AutoencoderKL) -> None:
    """Crops become whole images after three quarters of the optimisation steps."""
    system = autoencoder.AutoencoderSystem(AutoencoderConfig(batch=5), 32, 0, standard_vae, max_steps=4)

    def images(step: int, rank: int = 0, processes: int = 1, accumulated: int = 1) -> torch.Tensor:
        trainer: Any = SimpleNamespace(global_rank=rank, world_size=processes, accumulate_grad_batches=accumulated)
        system._trainer = trainer
        return system.images(step)

    for rank in range(2):
        assert torch.equal(images(3, rank, processes=2), images(6 + rank))
    assert [images(step, accumulated=2).shape[-1] for step in (5, 6)] == [16, 32]


def test_text_encoder_matches_captions_after_a_few_steps(tmp_path: Path, standard_vae: AutoencoderKL) -> None:
    """The loss falls below chance."""
    options = WordsConfig(max_steps=60, batch=16)
    cache, tokenizer = LatentCache(tmp_path, Photographs(5), standard_vae, 16, 96), text_encoder.train_tokenizer()
    torch.manual_seed(0)
    text = text_encoder.build(tokenizer)
    system = text_encoder.TextEncoderSystem(options, 0, text, tokenizer, cache)
    made = system.configure_optimizers()
    for step in range(options.max_steps):
        made["optimizer"].zero_grad()
        loss = system.training_step(step, step)
        loss.backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert loss.item() < 0.6 * math.log(16)


@pytest.mark.parametrize(("first", "pictures", "fresh"), [(18, 20, 2), (50, 40, 2), (4, 40, 0)])
@pytest.mark.parametrize("n_view", [1, 2])
def test_entries_of_a_step_are_available(tmp_path: Path, first: int, pictures: int, fresh: int, n_view: int) -> None:
    words = [f"training.first={first}", f"training.pictures={pictures}", f"training.fresh={fresh}"]
    system = PriorSystem(load_prior_config(tmp_path, *words), tiny_prior())
    seen: set[int] = set(range(first // n_view))
    for step in range(60):
        chosen = system.entries(step, n_view, 1.0)
        assert len(chosen) == 4 // n_view and chosen.min() >= 0 and chosen.max() < pictures // n_view
        new = {int(i) for i in chosen} - seen
        assert len(new) == min(fresh // n_view, pictures // n_view - len(seen & set(range(pictures // n_view))))
        assert new <= set(range(len(seen), len(seen) + 4))
        seen |= new


def test_steps_have_joined_views_or_single_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = load_prior_config(tmp_path, "trainer.max_steps=40")
    tuned = tiny_prior()
    asked: list[tuple[int, int, int | None]] = []  # pictures, how many are joined, their cameras

    def predict(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, camera: Any, n_view: int) -> torch.Tensor:
        assert len(text) == len(x) == len(t) == 4 and torch.equal(t, t[::n_view].repeat_interleave(n_view))
        asked.append((len(x), n_view, None if camera is None else len(camera)))
        return x * next(tuned.unet.parameters()).mean()

    monkeypatch.setattr(tuned, "predict", predict)
    system = PriorSystem(options, tuned, *caches(tmp_path, tuned.vae))
    for step in range(40):
        system.training_step(step, step)
    assert set(asked) == {(4, 2, 4), (4, 1, None)} and 5 <= asked.count((4, 1, None)) <= 20


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes half of the batch; mean losses and gradients are those of the whole."""
    monkeypatch.setattr(training_system, "autocast_bf16", lambda device: nullcontext())  # rounds by batch
    words = ["training.batch=8", "training.no_text=0.5", "training.object_codes=0.5"]
    options, prior = load_prior_config(tmp_path, *words), coarse_prior()
    system = PriorSystem(options, prior, *caches(tmp_path, prior.vae))

    def train(step: int, process: tuple[int, int]) -> tuple[float, torch.Tensor]:
        monkeypatch.setattr(PriorSystem, "process", process)
        monkeypatch.setattr(PriorSystem, "mean_of_processes", lambda self, loss: float(loss.detach()))
        monkeypatch.setattr(PriorSystem, "fill", lambda self, cache, chosen: None)
        system.zero_grad()
        loss = system.training_step(step, step)
        loss.backward()
        return loss.item(), prior.unet.conv_in.weight.grad.clone()

    kinds = set()
    for step in range(6):
        (whole, expected), *halves = (train(step, process) for process in ((0, 1), (0, 2), (1, 2)))
        kinds |= set(system.metrics)
        assert halves[0][0] != halves[1][0]
        assert sum(loss for loss, _ in halves) / 2 == pytest.approx(whole, rel=1e-4)
        torch.testing.assert_close((halves[0][1] + halves[1][1]) / 2, expected, rtol=1e-3, atol=1e-6)
    assert kinds == {"loss_2d", "loss_3d"}


def test_processes_that_cannot_share_the_objects_equally_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    prior = tiny_prior()
    system = PriorSystem(load_prior_config(tmp_path, "training.batch=8"), prior, *caches(tmp_path, prior.vae))
    monkeypatch.setattr(PriorSystem, "process", (0, 4))
    system.setup("fit")
    for count in (3, 8):  # of 4 objects with two views each
        monkeypatch.setattr(PriorSystem, "process", (0, count))
        with refused("training.batch", count, 2 * count):
            system.setup("fit")


def test_saved_prior_has_the_image_size_of_its_training(tmp_path: Path) -> None:
    """Steps without views make a multi-view prior too."""
    start = tiny_prior()
    networks = start.unet, start.vae, start.text_encoder, start.tokenizer
    prior = MVDream(*networks, image_size=2 * start.image_size, dtype="fp32")
    PriorSystem(load_prior_config(tmp_path), prior, caches(tmp_path, prior.vae)[0]).save(tmp_path)
    assert MVDream.load(str(tmp_path / "prior")).image_size == 2 * start.image_size


def test_small_parts_of_views_have_larger_loss_weights(tmp_path: Path) -> None:
    prior = tiny_prior()
    system = PriorSystem(load_prior_config(tmp_path, "training.batch=8"), prior, *caches(tmp_path, prior.vae))
    batches = [system.batch(step) for step in range(6)]
    single, views = ([b for b in batches if (b.condition["n_view"] > 1) == many] for many in (False, True))
    assert single and all(batch.weights is None for batch in single)
    for batch in views:
        assert batch.weights.shape == (len(batch.latents), 1, *batch.latents.shape[2:])
        assert float(batch.weights.mean()) == pytest.approx(1)
        assert batch.weights.max() > 1.5 * batch.weights.min()


def test_training_with_companions_makes_a_prior_that_completes_views(tmp_path: Path) -> None:
    prior = tiny_prior()
    for companions in (0.0, 0.5):
        PriorSystem(load_prior_config(tmp_path, f"training.view_noise.companions={companions}"), prior)
        assert prior.completes_views == (companions > 0)


def network(widths: tuple[int, int] = (8, 16)) -> Any:
    """Build a UNet with the parts of the toybox's: attention in one level, a pooled caption, scale and shift."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2), cross_attention_dim=12, norm_num_groups=4, addition_embed_type="text",
        addition_embed_type_num_heads=2, resnet_time_scale_shift="scale_shift", use_linear_projection=True,
    )  # fmt: skip


def output(unet: Any) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    z, text = torch.randn(3, 4, 8, 8, generator=rng), torch.randn(3, 5, 12, generator=rng)
    return unet(z, torch.tensor([20.0, 400.0, 900.0]), text).sample


def widened(unet: Any, channels: tuple[int, ...]) -> Any:
    return widen(unet, channels, torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("channels", "change"),
    [
        ((24, 48), 1e-4),
        ((24, 16), 0.25),  # norms over two levels weigh the wider one more; in a trained network far less
    ],
)
@torch.no_grad()
def test_wider_network_gives_almost_the_same_output(channels: tuple[int, int], change: float) -> None:
    narrow = network()
    wide, before = widened(narrow, channels), output(narrow)
    assert wide.config["block_out_channels"] == channels
    assert (output(wide) - before).norm() < change * before.norm()


def test_copies_get_different_gradients() -> None:
    wide = widened(network(), (16, 32))
    output(wide).square().mean().backward()
    grad = wide.conv_in.weight.grad
    assert torch.equal(wide.conv_in.weight[0], wide.conv_in.weight[1])
    assert torch.cosine_similarity(grad[0::2].flatten(1), grad[1::2].flatten(1)).max() < 0.99


@pytest.mark.parametrize(
    ("widths", "channels"), [((8, 16), (12, 16)), ((8, 16), (16,)), ((8, 16), (0, 16)), ((8, 8), (8, 16))]
)
def test_widths_that_are_no_multiples_are_refused(widths: tuple[int, int], channels: tuple[int, ...]) -> None:
    """Equal levels must stay equal."""
    with refused("widen", list(widths)):
        widened(network(widths), channels)
