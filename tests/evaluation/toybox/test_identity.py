"""Who tells subjects apart: the figures, the small network and how it learns, encoders of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_classifiers import tiny_clip
from threedgen.config import ConfigError, registry
from threedgen.evaluation.toybox.identity import (
    HubIdentity,
    IdentityNet,
    ToyboxIdentity,
    contrastive,
    measure_roc,
    pairs,
    roc,
    similarity,
)
from threedgen.evaluation.toybox.options import (
    EvaluateSubjectsConfig,
    HubIdentityConfig,
    IdentityNetworkConfig,
    ToyboxIdentityConfig,
    TrainIdentityConfig,
)
from threedgen.evaluation.toybox.training import IdentitySystem

SMALL = IdentityNetworkConfig(image_size=32, channels=(8, 8, 16, 16), width=8)


def test_a_roc_by_hand() -> None:
    found = roc(np.array([0.9, 0.8, 0.4]), np.array([0.5, 0.1]))
    assert found["area"] == pytest.approx(5 / 6)
    assert (found["threshold"], found["hits"], found["alarms"]) == (0.8, pytest.approx(2 / 3), 0.0)
    assert roc(np.array([0.5, 0.5]), np.array([0.5]))["area"] == 0.5, "ties count half"
    assert roc(np.array([1.0]), np.array([0.0]))["area"] == 1 and roc(np.array([0.0]), np.array([1.0]))["area"] == 0
    with pytest.raises(ValueError, match="both kinds"):
        roc(np.array([]), np.array([1.0]))


def test_only_subjects_of_one_kind_are_told_apart() -> None:
    vectors = torch.eye(4)[[0, 0, 1, 2, 3]]
    same, different = pairs(vectors, np.array([0, 0, 1, 2, 3]), np.array([5, 5, 5, 6, 6]))
    assert same.tolist() == [1.0] and len(different) == 3 and not different.any()


def test_similarity_is_the_mean_cosine() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert similarity(a, b) == 0.5 and similarity(a, a) == 1


def test_the_loss_asks_for_the_partner() -> None:
    right = torch.eye(3).repeat_interleave(2, 0)
    loss, share = contrastive(right, 0.1)
    assert share == 1 and loss < 1e-3
    wrong = torch.eye(3)[[0, 1, 1, 2, 2, 0]]
    loss, share = contrastive(wrong, 0.1)
    assert share == 0 and loss > 5


def system() -> IdentitySystem:
    torch.manual_seed(0)
    training = {"kinds": 2, "alike": 2, "bf16": False, "augment": 0.5, "learning_rate": 3e-3}
    return IdentitySystem(TrainIdentityConfig(task="train-identity", network=SMALL, training=training))  # type: ignore[arg-type]


def test_a_step_shows_the_same_subjects_whatever_came_before() -> None:
    one, other = system(), system()
    one.pictures(0)
    assert torch.equal(one.pictures(3)[0], other.pictures(3)[0]) and not torch.equal(
        one.pictures(3)[0], one.pictures(4)[0]
    )
    assert one.pictures(3)[0].shape == (8, 3, 32, 32)


def test_it_learns_to_tell_the_subjects_of_a_step_apart() -> None:
    learner = system()
    shown = learner.pictures(0)
    learner.pictures = lambda step: shown  # type: ignore[method-assign]
    optimizer = learner.configure_optimizers()["optimizer"]
    optimizer.param_groups[0]["lr"] = 3e-3
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = learner.training_step(step, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])


def test_the_network_of_a_file_is_the_one_that_was_saved(tmp_path: Path) -> None:
    net = IdentityNet(SMALL).eval()
    figures = measure_roc(net, 2, 2, 7)
    assert 0 <= figures["area"] <= 1 and figures == measure_roc(net, 2, 2, 7)
    path = tmp_path / "toybox-identity.safetensors"
    net.save(path, {"roc": figures})
    embed = registry.build("identity", ToyboxIdentityConfig(weights=str(tmp_path)))
    assert embed.card["roc"] == figures
    pictures = torch.rand(3, 48, 48, 3)
    vectors = embed(pictures)
    assert vectors.shape == (3, 8) and torch.allclose(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(vectors, embed(pictures.clone())) and not vectors.requires_grad


def test_what_is_no_identity_network_is_one_sentence(tmp_path: Path) -> None:
    wanted = {"identity": {"weights": str(tmp_path / "none")}, "preservation": ["l1"]}
    with pytest.raises(ConfigError, match=r"identity\.weights: there is no file.*train-toybox-identity"):
        EvaluateSubjectsConfig(task="evaluate-subjects", **wanted).check()  # type: ignore[arg-type]
    path = tmp_path / "toybox-identity.safetensors"
    IdentityNet(SMALL).save(path)
    path.with_suffix(".json").write_text(json.dumps({"network": {"width": 9}}))
    with pytest.raises(ConfigError, match="damaged or of another kind") as caught:
        ToyboxIdentity(ToyboxIdentityConfig(weights=str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "size", "width"), [("dino", 28, 16), ("clip", 32, 8)])
def test_an_encoder_of_the_hub_takes_its_place(tmp_path: Path, kind: str, size: int, width: int) -> None:
    from transformers import Dinov2Config, Dinov2Model

    if kind == "dino":
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=14)).save_pretrained(tmp_path)
    else:
        tiny_clip(tmp_path)
    embed = registry.build("identity", HubIdentityConfig(weights=str(tmp_path), size=size))
    vectors = embed(torch.rand(3, 40, 40, 3), chunk=2)
    assert vectors.shape == (3, width)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_hub_id_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded as an image encoder") as caught:
        HubIdentity(HubIdentityConfig(weights=str(tmp_path / "none")))
    assert "\n" not in str(caught.value)
