from pathlib import Path

import numpy as np
import pytest
import torch

from threedgen.toybox.evaluation import identity
from threedgen.toybox.evaluation.identity import ToyboxIdentity, contrastive, pairs, roc, similarity
from threedgen.toybox.evaluation.options import IdentityNetworkConfig, ToyboxIdentityConfig, TrainIdentityConfig

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


def test_run_leaves_a_network_and_its_roc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOUNS_PER_STEP", "SUBJECTS_PER_NOUN", "ROC_KINDS"):
        monkeypatch.setattr(identity, name, 2)
    trainer = {"max_steps": 2, "accelerator": "cpu", "val_check_interval": 0}
    values = {"task": "train-identity", "out": str(tmp_path), "threads": 1, "network": SMALL, "trainer": trainer}
    assert identity.run(TrainIdentityConfig.model_validate(values), quiet=True) == 0
    embed = ToyboxIdentity(ToyboxIdentityConfig(weights=str(tmp_path / "identity")))
    assert 0 <= embed.card["roc"]["area"] <= 1
    vectors = embed(torch.rand(3, 48, 48, 3))
    assert vectors.shape == (3, 8) and torch.allclose(vectors.norm(dim=1), torch.ones(3))
