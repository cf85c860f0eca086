"""Measure how much objects of quick-toybox change in the part of an image that an edit should keep.

The part that an edit should change is found from the prompts alone. Toybox objects of the old and the new prompt are
built with the same random values, and rendered from the cameras of the runs. A pixel is in the changing part if the two
renders differ near the pixel. The outline changes near pixels that only one of the two objects covers. The random
values of the objects of the runs are unknown, so the changing part is the union over several seeds.

If an edit adds an accessory, each seed gives two pairs of toybox objects: the object has its size without the accessory
in one pair, and in the other pair the smaller size at which object and accessory fit the image.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation
from skimage.color import rgb2lab

from threedgen.config import load
from threedgen.evaluation.metrics.figures import bootstrap
from threedgen.guidance.matte import Matte
from threedgen.guidance.weights.other_models import MATTE
from threedgen.run.arrays import Array
from threedgen.run.folder import slug
from threedgen.systems.generate.outputs import view_azimuths
from threedgen.toybox.evaluation.prior_score import foreground_masks
from threedgen.toybox.world.builder import corners
from threedgen.toybox.world.grammar import Spec, caption
from threedgen.toybox.world.primitives import Asset, Primitive
from threedgen.toybox.world.toybox import build, render_orbit

from .table import Row, Table
from .whole_run import launch

FOLDER = Path("outputs/benchmarks/edits")
PAIRS = (
    (Spec("dog", "yellow"), {"part": "hat", "part_colour": "blue"}),
    (Spec("car", "red"), {"colour": "green"}),
    (Spec("rabbit", "white"), {"part": "backpack", "part_colour": "green"}),
    (Spec("cat", "grey"), {"part": "scarf", "part_colour": "red"}),
    (Spec("house", "white"), {"colour": "orange"}),
    (Spec("bear", "brown"), {"part": "crown", "part_colour": "yellow"}),
    (Spec("frog", "green"), {"part": "bow", "part_colour": "pink"}),
    (Spec("tractor", "green"), {"colour": "red"}),
    (Spec("person", "purple"), {"part": "helmet", "part_colour": "grey"}),
    (Spec("robot", "blue"), {"part": "cape", "part_colour": "red"}),
)
"""Pairs (toybox object, {attribute: new value} of its edit)."""
SEEDS, MIN_LAB = 4, 5.0  # number of seeds per edit; minimum Lab distance of colours that differ
MARGIN = 1 / 32  # width of the border that is added to the changing part, as a fraction of the image side


def change_masks(
    before: Spec, after: Spec, azimuths: Array, elevation: float, fov: float, distance: float, size: int
) -> tuple[Array, Array]:
    """Return two bool masks (V, size, size): near a change of the image, and near a change of the outline.

    Args:
        before, after: toybox objects before and after the edit.
        azimuths: (V,) azimuths of the cameras in radians.
        elevation, fov: elevation and field of view of the cameras in radians.
        distance: distance of the cameras from the origin in world units.
        size: image side in pixels.
    """
    colour, outline = np.zeros((2, len(azimuths), size, size), bool)
    for pair in (pair for seed in range(SEEDS) for pair in toybox_pairs(before, after, seed)):
        a, b = (render_orbit(asset, azimuths, elevation, size, True, fov, distance * np.tan(fov / 2)) for asset in pair)
        outline |= np.asarray(a.mask != b.mask, bool).reshape(outline.shape)
        colour |= np.linalg.norm(rgb2lab(a.rgb) - rgb2lab(b.rgb), axis=-1) > MIN_LAB
    reach = int(MARGIN * size)
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    colour, outline = (binary_dilation(mask, disc[None]) for mask in (colour | outline, outline))
    return colour, outline


def toybox_pairs(before: Spec, after: Spec, seed: int) -> list[tuple[Asset, Asset]]:
    """Return one or two pairs of toybox objects (before, after) that differ in the edit alone.

    If the edit keeps the accessory, there is one pair. If it adds another, there are two. The objects of the first pair
    have the size at which the object without an accessory fits the image, and those of the second pair the smaller size
    at which the object with the new accessory fits.
    """
    other = build(after, np.random.default_rng(seed))
    if after.part == before.part:
        return [(build(before, np.random.default_rng(seed)), other)]
    solids = [solid for solid in other.primitives if solid.label != after.part]
    points = corners(solids)
    centre = (points.min(0) + points.max(0)) / 2
    scale = np.linalg.norm(corners(other.primitives), axis=1).max() / np.linalg.norm(points - centre, axis=1).max()

    def placed(solids: Iterable[Primitive]) -> Asset:
        moved = (replace(s, matrix=scale * s.matrix, centre=scale * (s.centre - centre)) for s in solids)
        return replace(other, primitives=tuple(moved))

    return [(placed(solids), placed(other.primitives)), (replace(other, primitives=tuple(solids)), other)]


def measure(before: Spec, edit: dict[str, str], overrides: list[str], matte: Matte) -> Row:
    """Run quick-toybox for an object and edit-toybox for its edit, and return the table row of their differences.

    Existing runs are used again. `edit` has the attributes of `before` that change. `overrides` are key=value changes
    of both configs.
    """
    after = replace(before, **edit)
    words, folders = ["export.enabled=false", *overrides], []
    for spec, config, more in ((before, "quick-toybox", []), (after, "edit-toybox", ["edit"])):
        folders.append(FOLDER / slug(" ".join([*more, caption(spec), *overrides])))
        if not (folders[-1] / "views.npz").exists():
            source = [f"edit={folders[0]}" for _ in more]
            launch(config, folders[-1], f"prompt={caption(spec)}", *source, *words)
    images = [np.load(folder / "views.npz")["views"] / np.float32(255) for folder in folders]
    masks = [foreground_masks(matte, views) for views in images]
    table = load("quick-toybox", ["prompt=a dog"]).result.turntable
    elevation, fov = np.deg2rad([table.elevation, table.fov])
    size = images[0].shape[1]
    colour, outline = change_masks(before, after, view_azimuths(table), elevation, fov, table.distance, size)
    distance = np.linalg.norm(rgb2lab(images[0]) - rgb2lab(images[1]), axis=-1)
    both, either = masks[0] & masks[1], masks[0] | masks[1]
    kept, changed = both & ~colour, either & colour
    return {
        "object": caption(before), "edit": caption(after),
        "kept, Lab": float(distance[kept].mean()), "median": float(np.median(distance[kept])),
        "outline IoU": float((both & ~outline).sum() / (either & ~outline).sum()),
        "changed, Lab": float(distance[changed].mean()), "kept, % of pixels": 100 * float(kept.sum() / both.sum()),
    }  # fmt: skip


def table(pairs: int, overrides: list[str]) -> Table:
    """Return a table with a row for each of the first `pairs` edits, and rows with the means and their intervals."""
    matte = Matte.load(MATTE)
    rows = [measure(before, edit, overrides, matte) for before, edit in PAIRS[:pairs]]
    figures = [key for key in rows[0] if key not in ("object", "edit")]
    values = {key: [float(row[key]) for row in rows] for key in figures}
    summary: list[Row] = [{"object": "mean", "edit": ""} | {key: float(np.mean(values[key])) for key in figures}]
    for k, name in enumerate(("95 % interval, from", "95 % interval, to") if pairs > 1 else ()):
        ends = {key: (bootstrap(values[key]) or (float("nan"),) * 2)[k] for key in figures}
        summary.append({"object": name, "edit": ""} | ends)
    return Table("Objects and their edits", [*rows, *summary])
