"""Writer for a scene in the SRN layout, which `reader.py` reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from threedgen.geometry.images import png, to_uint8
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views
from threedgen.run.disk import atomic_folder


def write_instance(folder: Path | str, views: Views, numbers: Sequence[int] | None = None) -> Path:
    """Write views to a new folder with rgb/, pose/ and intrinsics.txt, atomically. Images are rounded to 8 bits.

    `numbers` are the numbers of the views in the file names; None: 0, 1, ... Raises ValueError unless all views have
    the same K with square pixels and no skew, FileExistsError if the folder exists, and OSError.
    """
    folder = Path(folder)
    K = views.cameras.K[0].double().numpy()
    if not np.allclose(views.cameras.K.double().numpy(), K, atol=1e-4) or abs(K[0, 0] - K[1, 1]) > 1e-4 or K[0, 1]:
        raise ValueError("the SRN layout needs one focal length for all views and both axes")
    if folder.exists():
        raise FileExistsError(f"{folder} already exists")
    with atomic_folder(folder) as temporary:
        for part in ("rgb", "pose"):
            (temporary / part).mkdir()
        poses = opencv_axes(views.cameras.c2w).double().numpy()
        for k, number in enumerate(range(len(views)) if numbers is None else numbers):
            (temporary / "rgb" / f"{number:06d}.png").write_bytes(png(to_uint8(views.images[k])))
            text = " ".join(f"{x:.9g}" for x in poses[k].ravel())
            (temporary / "pose" / f"{number:06d}.txt").write_text(text + "\n", encoding="utf-8")
        focal = f"{K[0, 0]:.9g} {K[0, 2]:.9g} {K[1, 2]:.9g} 0."
        lines = (focal, "0. 0. 0.", "1.", f"{views.cameras.height} {views.cameras.width}")
        (temporary / "intrinsics.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
