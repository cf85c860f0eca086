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
    from torch import nn


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


def save_tensors(network: nn.Module, path: Path, prefix: str = "") -> None:
    """All tensors of a network in float16, their names with ``prefix``. ConfigError if one overflows."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in network.state_dict().items():
        kept = tensor.detach().cpu().half().contiguous()
        if not torch.isfinite(kept).all():
            raise ConfigError(f"cannot save {path.parent.name}: {name!r} does not fit into float16")
        tensors[prefix + name.removeprefix(prefix)] = kept
    save_file(tensors, path, metadata={"format": "pt"})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
