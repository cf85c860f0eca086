"""Writes a scene as a folder in the layout of ``reader.py``, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from threedgen.geometry.images import png, to_uint8
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views
from threedgen.run.disk import whole_folder


def write_instance(folder: Path | str, views: Views, numbers: Sequence[int] | None = None) -> Path:
    """FOLDER with rgb/, pose/ and intrinsics.txt of ``views``, named by ``numbers`` (default: 0, 1, ...).

    The views share one K with square pixels; pictures are rounded to 8 bits. A kill leaves no half of a folder behind
    under this name. Raises ValueError for other intrinsics, FileExistsError if the folder is there, OSError.
    """
    folder = Path(folder)
    K = views.at.K[0].double().numpy()
    if not np.allclose(views.at.K.double().numpy(), K, atol=1e-4) or abs(K[0, 0] - K[1, 1]) > 1e-4 or K[0, 1]:
        raise ValueError("a scene in this layout has one focal length for all views and both axes")
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    with whole_folder(folder) as temporary:
        for part in ("rgb", "pose"):
            (temporary / part).mkdir()
        poses = opencv_axes(views.at.c2w).double().numpy()
        for k, number in enumerate(range(len(views)) if numbers is None else numbers):
            (temporary / "rgb" / f"{number:06d}.png").write_bytes(png(to_uint8(views.images[k])))
            text = " ".join(f"{x:.9g}" for x in poses[k].ravel())
            (temporary / "pose" / f"{number:06d}.txt").write_text(text + "\n", encoding="utf-8")
        focal = f"{K[0, 0]:.9g} {K[0, 2]:.9g} {K[1, 2]:.9g} 0."
        lines = (focal, "0. 0. 0.", "1.", f"{views.at.height} {views.at.width}")
        (temporary / "intrinsics.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
