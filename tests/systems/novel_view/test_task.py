from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from tests.support.task_server import TINY_THREEDIM, assert_same, finished_run, weights
from tests.support.tiny_prior import tiny_coarse, tiny_text_encoder, tiny_unet, tiny_vae, word_tokenizer
from tests.support.tiny_threedim import inputs, tiny_network
from tests.support.tiny_trainings import threedim_command
from threedgen.data.srn.options import SRNPairsConfig
from threedgen.data.srn.pairs import ArchiveScenes, PairCache
from threedgen.data.srn.reader import write_instance
from threedgen.guidance.novel_view import novel_views as folder
from threedgen.guidance.novel_view.sampler import add_noise, target
from threedgen.guidance.novel_view.xunet import LatentPairs
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.metrics import read_summary
from threedgen.systems.novel_view import task as train
from threedgen.systems.novel_view.options import TrainThreeDiMConfig
from threedgen.systems.novel_view.task import Pairs, PairSystem, gap_test, pair_loss, rate_factor
from threedgen.toybox.data.make_srn import Job, ToyboxScenes, scene
from threedgen.toybox.options import ToyboxPairsConfig

LEVELS = (0.5, 0.05)


def checked(out: Path, **sections: Any) -> TrainThreeDiMConfig:
    return TrainThreeDiMConfig.model_validate(TINY_THREEDIM | {"out": str(out)} | sections)


class Copycat:
    """Takes its condition for the target, or zeros if it may not look."""

    prediction, clip, image_size = "sample", 1.0, (8, 8)

    def __init__(self, looks: bool) -> None:
        self.looks = looks
        self.seen: list[Tensor] = []

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, has_condition: Tensor) -> Tensor:
        self.seen.append(x)
        return x if self.looks else 0.5 * z

    def encode_images(self, rgb: Tensor) -> Tensor:
        return 2 * rgb.permute(0, 3, 1, 2) - 1

    def decode_images(self, x: Tensor) -> Tensor:
        return (x / 2 + 0.5).permute(0, 2, 3, 1)


def equal_pairs(count: int = 6) -> Pairs:
    some = inputs(tiny_network(), count)
    x = some.x.clamp(-1, 1)
    return Pairs(x, x, some.c2w, some.K)


def test_gap_is_that_to_conditions_shuffled_within_their_kind() -> None:
    for gap in gap_test(Copycat(looks=False), equal_pairs(), LEVELS, torch.Generator().manual_seed(0)):
        assert gap.gap == 0 and 0 < gap.true < 30
    for gap in gap_test(Copycat(looks=True), equal_pairs(), LEVELS, torch.Generator().manual_seed(0)):
        assert gap.true == 100 and gap.gap > 80
    model, pairs = Copycat(looks=True), equal_pairs()
    gap_test(model, pairs, (0.5,), torch.Generator().manual_seed(0), kinds=2)
    true, shuffled = model.seen
    assert torch.equal(true, pairs.x) and torch.equal(shuffled, pairs.x[[2, 3, 4, 5, 0, 1]])


def test_loss_is_that_of_the_prediction_and_dropped_conditions_are_noise() -> None:
    model, pairs = Copycat(looks=True), equal_pairs(4)
    gen = torch.Generator().manual_seed(0)
    noise, blank = torch.randn(2, *pairs.x.shape, generator=gen)
    has_condition = torch.tensor([True, True, False, False])
    loss = pair_loss(model, pairs, torch.zeros(4), has_condition, noise, blank)
    assert torch.equal(model.seen[0][:2], pairs.x[:2]) and torch.equal(model.seen[0][2:], blank[2:])
    assert torch.allclose(loss, (blank[2:] - pairs.x0[2:]).square().mean() / 2)
    network, level = tiny_network(prediction="v_prediction"), torch.tensor([-2.0, 0, 1, 4])
    z, wanted = add_noise(pairs.x0, noise, level), target(pairs.x0, noise, level, "v_prediction")
    with torch.no_grad():
        out = network.predict(pairs.x, z, level, pairs.c2w, pairs.K, torch.ones(4, dtype=torch.bool))
        found = pair_loss(network, pairs, level, torch.ones(4, dtype=torch.bool), noise, blank)
    assert torch.allclose(found, (out - wanted).square().mean())


def test_learning_rate_rises_and_falls_at_the_end() -> None:
    share = rate_factor(warmup=4, decay=0.5, max_steps=20)
    assert [share(step) for step in (0, 1, 3, 9, 10, 15, 20)] == [0.25, 0.5, 1, 1, 1, 0.5, 0]
    assert rate_factor(0, 0, 20)(0) == rate_factor(0, 0, 20)(19) == 1


def test_archive_and_toybox_give_the_same_pairs_and_the_cache_is_reused(tmp_path: Path) -> None:
    box = ToyboxScenes(ToyboxPairsConfig(families=("cars",), scenes=4, views=5, held_out=2), 16, seed=3)
    for number in range(4):
        job = Job("cars", "train", number)
        write_instance(tmp_path / "cars_train" / job.name, scene(box.config, job))
    archive = ArchiveScenes(SRNPairsConfig(path=str(tmp_path), held_out=2), 16)
    mine, theirs = (PairCache(tmp_path / name, source, 16, 2) for name, source in (("a", box), ("b", archive)))
    assert mine.train == theirs.train == 2 and archive.views == 5
    chosen = np.array([1, 0, 1])
    one, other = (cache.pairs(chosen, np.random.default_rng(0)) for cache in (mine, theirs))
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    x, y, c2w, K = one
    assert x.shape == (3, 16, 16, 3) and c2w.shape == (3, 2, 4, 4) and K.shape == (3, 3, 3)
    assert not any(torch.equal(pose[0], pose[1]) for pose in c2w)
    again = PairCache(tmp_path / "a", box, 16, 2)
    assert not again.cache.missing_blocks([0, 1]) and again.cache.missing_blocks([2]) == [2]
    for a, b in zip(one, again.pairs(chosen, np.random.default_rng(0)), strict=True):
        assert torch.equal(a, b)
    with refused(None, "4 scenes", 4):
        PairCache(tmp_path / "c", box, 16, 4)


def undisturbed() -> Path:
    return finished_run(threedim_command)


def test_run_leaves_a_model_and_gaps() -> None:
    run = undisturbed()
    model, cameras = folder.load(str(run / "model"))
    assert cameras is not None and cameras.focal == pytest.approx(0.5 / np.tan(np.deg2rad(20)), rel=1e-4)
    assert cameras.distance == (pytest.approx(2.61, abs=0.01), pytest.approx(2.61, abs=0.01))
    assert -10 <= cameras.elevation[0] < cameras.elevation[1] <= 80
    state = weights(run)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"average./{name.replace('.', '/')}"].half().float()), name
    assert any(not torch.equal(value, state[f"model.{name}"]) for name, value in model.state_dict().items())
    assert {"gap_0.5", "gap_0.05"} <= read_summary(run).keys()


def test_training_starts_from_a_trained_network_of_the_same_sizes(tmp_path: Path) -> None:
    network, start = TINY_THREEDIM["model"]["network"], str(undisturbed() / "model")
    model = {"name": "pixels", "start": start, "network": network}
    shut = TINY_THREEDIM["training"] | {"learning_rate": 1e-12}
    config = checked(tmp_path, model=model, training=shut, trainer=TINY_THREEDIM["trainer"] | {"max_steps": 2})
    assert train.run(config, quiet=True) == 0
    found, before = (folder.load(place)[0].state_dict() for place in (str(tmp_path / "model"), start))
    assert_same(dict(found), dict(before))
    other = model | {"network": network | {"channels": 2 * network["channels"]}}
    with refused("model.network.channels", network["channels"]):
        train.build(checked(tmp_path, model=other))


def test_unet_of_a_prior_is_trained_on_its_latents(tmp_path: Path) -> None:
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}  # as the embedded prior
    unet = tiny_unet(in_channels=8, out_channels=4, **camera)
    parts = unet, tiny_vae(), tiny_text_encoder(), word_tokenizer()
    model = LatentPairs(MVDream(*parts, coarse=tiny_coarse()))
    model.prior.save(tmp_path / "prior")
    before = {name: value.clone() for name, value in MVDream.load(str(tmp_path / "prior")).vae.state_dict().items()}
    config = checked(
        tmp_path / "run",
        model={"name": "latents", "start": str(tmp_path / "prior")},
        trainer=TINY_THREEDIM["trainer"] | {"max_steps": 3},
    )
    (tmp_path / "run").mkdir()
    assert train.run(config, quiet=True) == 0
    found, _ = folder.load(str(tmp_path / "run" / "model"))
    assert isinstance(found, LatentPairs) and found.image_size == (16, 16)
    assert_same(dict(found.prior.vae.state_dict()), before)
    moved = found.unet.conv_in.weight - model.unet.conv_in.weight.half().float()
    assert 0 < moved.abs().max() < 0.1
    assert all(name.startswith(("model.unet.", "average./unet/")) for name in weights(tmp_path / "run"))


def test_half_life_and_warm_up_count_examples(tmp_path: Path) -> None:
    config = checked(tmp_path)
    system = PairSystem(config, train.build(config), train.pair_cache(config, train.build(config), tmp_path / "bank"))

    class Trainer:
        world_size, accumulate_grad_batches = 2, 4

    trainer = Trainer()
    system._trainer = trainer  # type: ignore[assignment]
    system.setup("fit")
    assert system.examples == 32 and system.average.decay == pytest.approx(0.5**4)
    optimizer = system.configure_optimizers()["optimizer"]
    assert optimizer.defaults["betas"] == (0.9, 0.99)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)  # 16 examples are less than a step
