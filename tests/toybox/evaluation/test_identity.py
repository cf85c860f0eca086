import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.errors import refused
from threedgen.toybox.evaluation import identity
from threedgen.toybox.evaluation.identity import (
    IdentityNet,
    IdentitySystem,
    ToyboxIdentity,
    contrastive,
    measure_roc,
    pairs,
    roc,
    similarity,
)
from threedgen.toybox.evaluation.options import (
    EvaluateSubjectsConfig,
    IdentityNetworkConfig,
    ToyboxIdentityConfig,
    TrainIdentityConfig,
)

SMALL = IdentityNetworkConfig(image_size=32, channels=(8, 8, 16, 16), width=8)


def test_roc_similarity_and_contrastive_loss_of_a_few_pairs() -> None:
    found = roc(np.array([0.9, 0.8, 0.4]), np.array([0.5, 0.1]))
    assert found["area"] == pytest.approx(5 / 6)
    assert (found["threshold"], found["hits"], found["alarms"]) == (0.8, pytest.approx(2 / 3), 0.0)
    assert roc(np.array([0.5, 0.5]), np.array([0.5]))["area"] == 0.5, "ties count half"
    assert roc(np.array([1.0]), np.array([0.0]))["area"] == 1 and roc(np.array([0.0]), np.array([1.0]))["area"] == 0
    vectors = torch.eye(4)[[0, 0, 1, 2, 3]]
    same, different = pairs(vectors, np.array([0, 0, 1, 2, 3]), np.array([5, 5, 5, 6, 6]))
    assert same.tolist() == [1.0] and len(different) == 3 and not different.any()
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert similarity(a, b) == 0.5 and similarity(a, a) == 1
    loss, share = contrastive(torch.eye(3).repeat_interleave(2, 0), 0.1)
    assert share == 1 and loss < 1e-3
    loss, share = contrastive(torch.eye(3)[[0, 1, 1, 2, 2, 0]], 0.1)
    assert share == 0 and loss > 5


@pytest.fixture(autouse=True)
def few_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "NOUNS_PER_STEP", 2)
    monkeypatch.setattr(identity, "SUBJECTS_PER_NOUN", 2)


def system() -> IdentitySystem:
    torch.manual_seed(0)
    return IdentitySystem(TrainIdentityConfig.model_validate({"task": "train-identity", "network": SMALL}))


def test_training_lowers_the_loss() -> None:
    """A batch depends on the step only."""
    learner = system()
    batch = learner.batch(0)
    later = learner.batch(3)
    assert torch.equal(later, system().batch(3)) and not torch.equal(later, learner.batch(4))
    assert batch.shape == (8, 3, 32, 32)
    learner.batch = lambda step: batch  # type: ignore[method-assign]
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


def test_saved_network_is_loaded_by_the_registry(tmp_path: Path) -> None:
    net = IdentityNet(SMALL).eval()
    figures = measure_roc(net, 2, 2, 7)
    assert 0 <= figures["area"] <= 1 and figures == measure_roc(net, 2, 2, 7)
    net.save(tmp_path / "toybox-identity.safetensors", {"roc": figures})
    embed = ToyboxIdentity(ToyboxIdentityConfig(weights=str(tmp_path)))
    assert embed.card["roc"] == figures
    images = torch.rand(3, 48, 48, 3)
    vectors = embed(images)
    assert vectors.shape == (3, 8) and torch.allclose(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(vectors, embed(images.clone())) and not vectors.requires_grad


def test_missing_and_damaged_networks_are_refused(tmp_path: Path) -> None:
    values = {"identity": {"weights": str(tmp_path / "none")}, "preservation": ["l1"], "task": "evaluate-subjects"}
    with refused("identity.weights", "train-toybox-identity"):
        EvaluateSubjectsConfig.model_validate(values).check()
    path = tmp_path / "toybox-identity.safetensors"
    IdentityNet(SMALL).save(path)
    path.with_suffix(".json").write_text(json.dumps({"network": {"width": 9}}))
    with refused("identity.weights", path):
        ToyboxIdentity(ToyboxIdentityConfig(weights=str(path)))
