"""Writing the files of a model: a folder is there whole, with check sums, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threedgen.config import ConfigError

from . import reading

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def whole_folder(folder: Path, label: str) -> Iterator[Path]:
    """A new folder to write into, which gets SHA256SUMS and takes the place of ``folder`` at the end.

    ``label``: a file that each folder of this kind has. Raises ConfigError if ``folder`` holds something without it.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / label).is_file():
        raise ConfigError(f"{folder} holds something else than a saved model: choose another folder")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        reading.write_sums(part)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_tensors(network: nn.Module, path: Path, prefix: str = "", half: bool = True) -> None:
    """All tensors of a network, their names with ``prefix``; float16 if ``half``. ConfigError if one overflows."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in network.state_dict().items():
        kept = tensor.detach().cpu().to(torch.float16 if half else torch.float32).contiguous()
        if not torch.isfinite(kept).all():
            raise ConfigError(f"cannot save {path.parent.name}: {name!r} does not fit into {_name(kept)}")
        tensors[prefix + name.removeprefix(prefix)] = kept
    save_file(tensors, path, metadata={"format": "pt"})


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
