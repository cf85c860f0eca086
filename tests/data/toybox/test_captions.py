"""Objects with captions that leave colours open."""

from __future__ import annotations

import re

import numpy as np
import pytest

from threedgen.data.toybox.captions import SAME_PLACE, SCATTERED_ELEVATION, OpenToybox, conflict
from threedgen.data.toybox.grammar import COLOURS, NOUNS, Spec, held_out
from threedgen.data.toybox.primitives import Asset
from threedgen.data.toybox.words import train_tokenizer

COUNT = 400


@pytest.fixture(scope="module")
def assets() -> list[Asset]:
    box = OpenToybox(3)
    return [box.asset(index) for index in range(COUNT)]


def words(caption: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", caption)


def spec(asset: Asset) -> Spec:
    return Spec(**{name: getattr(asset, name) for name in Spec.__dataclass_fields__})


def test_captions_use_only_words_of_the_tokenizer(assets: list[Asset]) -> None:
    known = set(train_tokenizer(32).get_vocab())
    assert not {word for asset in assets for word in words(asset.caption)} - known


def test_captions_name_the_object_and_state_none_but_its_colours(assets: list[Asset]) -> None:
    stated = 0
    for asset in assets:
        named = [word for word in words(asset.caption) if word in COLOURS]
        own = [asset.colour, asset.part_colour, asset.second_colour]
        assert asset.noun in asset.caption and asset.colour in COLOURS
        assert all(own.count(colour) >= named.count(colour) for colour in named)
        stated += bool(named)
    assert 0.4 < stated / COUNT < 0.75


def test_parts_are_named_and_shown_up_to_two_at_once(assets: list[Asset]) -> None:
    counts = np.zeros(3, int)
    for asset in assets:
        details = [word for word, _ in spec(asset).details]
        counts[len(details)] += 1
        assert all(word in asset.caption for word in details)
        assert all(word in NOUNS[asset.noun].parts + NOUNS[asset.noun].wears for word in details)
        assert len(details) < 2 or not conflict(*details)
    assert (counts > 0.08 * COUNT).all()


def test_accessories_of_one_place_conflict() -> None:
    assert all(conflict(group[0], group[1]) for group in SAME_PLACE)
    assert conflict("ears", "ears") and not conflict("hat", "scarf")


def test_two_accessories_are_both_on_the_object() -> None:
    worn = [a for a in map(OpenToybox(5).asset, range(300)) if a.second in NOUNS[a.noun].wears]
    assert worn and all(asset.second in asset.labels for asset in worn)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_split_is_decided_by_the_colours_of_the_object(split: str) -> None:
    box = OpenToybox(4, split)  # type: ignore[arg-type]
    assert {held_out(spec(box.asset(index))) for index in range(60)} == {split == "held-out"}


def test_an_object_is_always_the_same() -> None:
    one, again, other = OpenToybox(6).asset(9), OpenToybox(6).asset(9), OpenToybox(7).asset(9)
    assert one.caption == again.caption and len(one.primitives) == len(again.primitives)
    assert one.caption != other.caption or len(one.primitives) != len(other.primitives)


def test_a_share_of_the_objects_has_independent_cameras() -> None:
    box, scattered = OpenToybox(8, scattered=0.5), 0
    for index in range(60):
        c2w, _, azimuth, _ = box.cameras(index)
        position = c2w[:, :3, 3] / np.linalg.norm(c2w[:, :3, 3], axis=1, keepdims=True)
        elevation = np.rad2deg(np.arcsin(position[:, 2]))
        assert np.allclose(np.cos(azimuth - np.arctan2(position[:, 1], position[:, 0])), 1, atol=1e-4)
        if np.ptp(elevation) > 1e-2:
            scattered += 1
            assert (SCATTERED_ELEVATION[0] - 0.1 <= elevation).all()
            assert (elevation <= SCATTERED_ELEVATION[1] + 0.1).all()
    assert 15 < scattered < 45
