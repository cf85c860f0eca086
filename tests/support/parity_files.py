"""Recorded outputs of reference implementations: find by prefix, read, compare."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

DEFAULT = Path(__file__).parents[1] / "parity"


def parity_files(prefix: str, *arrays: str) -> list[Path]:
    """Return all `PREFIX*.npz` with `arrays` below the folder THREEDGEN_PARITY (default: tests/parity).

    Fails without any, because tests without recordings would be skipped silently.
    """
    root = Path(os.environ.get("THREEDGEN_PARITY", DEFAULT))
    paths = sorted(root.rglob(f"{prefix}*.npz"))
    found = [path for path in paths if not arrays or {*arrays} <= {*np.load(path).files}]
    assert found, f"no recording {prefix}*.npz with {arrays} in {root}"
    return found


def recorded(prefix: str, *arrays: str) -> pytest.MarkDecorator:
    """Parametrise a test by these recordings as its `path`."""
    return pytest.mark.parametrize("path", parity_files(prefix, *arrays), ids=lambda path: path.stem)


def tensors(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        arrays = {name: np.asarray(file[name]) for name in file.files}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fiub"}


def options(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return json.loads(str(file["meta_json"])) if "meta_json" in file.files else {}


def parted(path: Path, prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return weights (names with `prefix`), the other arrays, and the metadata of a recording."""
    every = tensors(path)
    weights = {name.removeprefix(prefix): tensor for name, tensor in every.items() if name.startswith(prefix)}
    return weights, {name: t for name, t in every.items() if not name.startswith(prefix)}, options(path)


def recorded_network(r: dict[str, Tensor]) -> Any:
    """Return the network of recordings of losses: every input matters, other views of a group included."""

    def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        h = torch.einsum("oc,bchw->bohw", r["fake.Wx"], x)
        if camera is not None:
            mean = x.unflatten(0, (-1, n_view)).mean(1).repeat_interleave(n_view, 0)
            h = h - 0.2 * mean + (camera @ r["fake.Wc"])[:, :, None, None]
        h = h + (text.mean(1) @ r["fake.Wt"] + 0.5 * torch.sin(t / 100)[:, None])[:, :, None, None]
        return h + 0.1 * h.tanh()

    return denoise


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert equality up to a tolerance relative to the largest value."""
    assert found.shape == expected.shape
    error = float((found.double() - expected.double()).abs().max())
    assert error <= tolerance * float(expected.abs().max()), f"{error:.2e}"
