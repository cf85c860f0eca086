import numpy as np
import pytest

from threedgen.toybox.data.pictures import MAX_WEIGHT, MIN_AREA, PIXELS, Photographs, ViewRings
from threedgen.toybox.world.open_toybox import OpenToybox


def names_room(caption: str) -> bool:
    return "room" in caption.replace(",", "").split()


def test_share_of_photographs_shows_rooms() -> None:
    block = Photographs(3).render_examples(range(160), 8)
    inside = np.arange(160) % 4 == 3
    assert np.array_equal([names_room(text) for text in block.captions], inside)
    assert block.rgb.shape == (160, 8, 8, 3) and 0 <= block.rgb.min() and block.rgb.max() <= 1
    for share in (0.0, 0.3, 1.0):  # inside rooms
        captions = Photographs(3, rooms=share, clutter=0.4).render_examples(range(60), 8).captions
        assert sum(map(names_room, captions)) == round(60 * share)


def test_style_changes_objects_but_not_captions_or_rooms() -> None:
    plain, blocks = (Photographs(3, rooms=0.5, style=style) for style in ("plain", "blocks"))
    ours, theirs = plain.render_examples(range(8), 16), blocks.render_examples(range(8), 16)
    same = (ours.rgb == theirs.rgb).all((1, 2, 3))
    assert ours.captions == theirs.captions and np.array_equal(same, np.arange(8) % 2 == 1)  # rooms are unchanged
    others = Photographs(4), Photographs(3, "held-out")
    assert len({source.describe() for source in (plain, blocks, *others)}) == 4


def test_small_parts_have_larger_weights() -> None:
    box = OpenToybox(0, "train")
    source, size, index = ViewRings(box, 2), 8, 3
    weights = source.part_weights(index, size)
    label = box.render([box.asset(index)], [index], PIXELS * size, 2, with_gbuffer=True)[0].label
    assert weights.shape == (2, size, size) and weights.min() == 1 and (weights[:, 0, 0] == 1).all()
    for view, labels in zip(weights, label, strict=True):
        areas = [(labels == part).mean() for part in np.unique(labels[labels > 0])]
        added = sum(max(0, min(MIN_AREA, MAX_WEIGHT * area) - area) for area in areas)
        assert added > 0 and view.mean() == pytest.approx(1 + added, rel=1e-5)
