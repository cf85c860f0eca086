"""A probe for the evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from threedgen.evaluation.toybox.labels import Labels
from threedgen.evaluation.toybox.options import ProbeNetworkConfig
from threedgen.evaluation.toybox.probe import Probe


@pytest.fixture
def probe_file(tmp_path: Path) -> str:
    """An untrained probe."""
    torch.manual_seed(0)
    path = tmp_path / "weights" / "toybox-probe.safetensors"
    Probe(Labels.of_toybox(), ProbeNetworkConfig(image_size=32, channels=(8, 16, 16, 16))).save(path)
    return str(path)
