import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from threedgen.data.options import OBJECT_RADIUS
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.data.pictures import Photographs
from threedgen.toybox.world.grammar import (
    ACCESSORIES,
    COLOURS,
    NOUNS,
    SIZES,
    WORDINGS,
    Noun,
    Spec,
    caption,
    detail_phrase,
    held_out,
)
from threedgen.toybox.world.open_toybox import EXCLUSIVE_GROUPS, OpenToybox, conflicts
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.rooms import Rooms
from threedgen.toybox.world.toybox import Split, Toybox, build, render_azimuths

ROOT = Path(__file__).parents[2]
ALL_NOUNS = [pytest.param(entry, id=word) for word, entry in NOUNS.items()]
NOUNS_WITH_FRONT = [pytest.param(word, id=word) for word, entry in NOUNS.items() if entry.front]


def example(noun: str, part: str = "", size: str = "large", seed: int = 5) -> Asset:
    return build(Spec(noun, "blue", size, part, "red" if part else ""), np.random.default_rng(seed))


def farthest(asset: Asset) -> float:
    return float(np.linalg.norm(asset.mesh()[0], axis=1).max())


@pytest.mark.parametrize("entry", ALL_NOUNS)
def test_named_parts_exist_and_are_visible(entry: Noun) -> None:
    details = entry.parts + entry.wears
    assets = [example(entry.word, part) for part in details]
    azimuth = np.tile(np.deg2rad([0.0, 90.0, 180.0, 270.0]), len(details))
    c2w = orbit_array(np.full_like(azimuth, 0.26), azimuth, np.full_like(azimuth, 2.6))
    owner = np.repeat(np.arange(len(details)), 4)
    labels = render(assets, owner, c2w, np.full(len(c2w), 0.7), 64, supersample=1, with_gbuffer=True).label
    for k, (part, asset) in enumerate(zip(details, assets, strict=True)):
        assert part in asset.labels, f"no solid of the {entry.word} is labelled {part!r}"
        colours = [p.colour for p in asset.primitives if p.label == part]
        assert any(c[0] > 0.6 and c[1] < 0.4 and c[2] < 0.4 for c in colours), f"the {part} is not red"
        visible = labels[owner == k] == asset.labels.index(part) + 1
        assert visible.mean((1, 2)).max() > 0.0025, f"the {part} of the {entry.word} is hidden or tiny"


@pytest.mark.parametrize("word", NOUNS_WITH_FRONT)
def test_sides_of_nouns_with_a_front_differ(word: str) -> None:
    result = render_azimuths(example(word), [0.0, 90.0, 180.0, 270.0], 64, with_gbuffer=True)
    area = result.mask.sum() / 4
    for one, other in combinations(result.label, 2):
        assert (one != other).sum() > 0.1 * area


def test_faces_look_towards_plus_x() -> None:
    with_eyes = [word for word in NOUNS if "eyes" in example(word).labels]
    assert len(with_eyes) > 15
    for word in with_eyes:
        asset = example(word)
        eyes = render_azimuths(asset, [0.0, 180.0], 48, with_gbuffer=True).label == asset.labels.index("eyes") + 1
        assert eyes[0].sum() > eyes[1].sum(), word
        assert np.mean([p.centre[0] for p in asset.primitives if p.label == "eyes"]) > 0, word


def test_size_words_scale_or_stretch_the_same_object() -> None:
    for word in ("dog", "house", "ball", "car"):
        plain, small, large, tall, wide = (example(word, size=s) for s in ("", "small", "large", "tall", "wide"))
        assert farthest(small) < 0.8 * farthest(plain) <= 0.8 * farthest(large)
        extents = [np.ptp(asset.mesh()[0], axis=0) for asset in (plain, tall, wide)]
        shape, taller, wider = (extent / extent[0] for extent in extents)
        assert np.allclose(taller, shape * (1, 1, 1.4), rtol=0.02)
        assert np.allclose(wider, shape * (1, 1.4, 1), rtol=0.02)


def open_objects(seed: int, split: Split, indices: range) -> list[np.ndarray]:
    return [np.array(repr(OpenToybox(seed, split).asset(index))) for index in indices]


def test_samples_are_identical_in_another_process() -> None:
    sample = "open_objects(7, 'held-out', range(3, 9))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "17"}
    run = [sys.executable, "-c", f"from tests.toybox.test_world import open_objects; print({sample})"]
    other = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(open_objects(7, "held-out", range(3, 9)))


def views(seed: int, split: Split, indices: range) -> list[np.ndarray]:
    return np.split(Toybox(seed, split).batch(indices, 24)[1], len(indices))


def rooms(seed: int, split: Split, indices: range) -> list[np.ndarray]:
    return np.split(Rooms(seed, split).render_views(indices, 16, 2)[0], len(indices))


def photographs(seed: int, split: Split, indices: range) -> list[np.ndarray]:
    return list(Photographs(seed, split).render_examples(indices, 16).rgb)


@pytest.mark.parametrize("source", [open_objects, views, rooms, photographs])
def test_samples_depend_only_on_seed_split_and_index(source: Callable[..., list[np.ndarray]]) -> None:
    whole, part = source(5, "train", range(9, 15)), source(5, "train", range(11, 13))
    assert all(map(np.array_equal, whole[2:4], part))
    for other in (source(6, "train", range(11, 13)), source(5, "held-out", range(11, 13)), whole[3:5]):
        assert not any(map(np.array_equal, other, part))


def test_cameras_look_at_the_origin_from_four_sides() -> None:
    for index in range(8):
        c2w, _, azimuth, _ = Toybox(0).cameras(index)
        position = c2w[:, :3, 3].astype(float)
        outwards = position / np.linalg.norm(position, axis=1, keepdims=True)
        assert np.allclose(c2w[:, :3, 2], outwards, atol=1e-5)  # looks along -z at the origin
        assert np.allclose(np.arctan2(position[:, 1], position[:, 0]) % (2 * np.pi), azimuth, atol=1e-4)
        assert np.allclose(np.diff(azimuth) % (2 * np.pi), np.pi / 2, atol=1e-4)


def test_random_solids_have_no_noun_and_fit_into_the_ball() -> None:
    for heap in Toybox(0).batch(range(6), 16, 1, solids_share=1.0)[0]:
        assert heap.noun == heap.caption == "" and farthest(heap) <= OBJECT_RADIUS


def test_captions_state_the_spec_in_correct_english() -> None:
    full = Spec("dog", "blue", "small", "hat", "red")
    assert caption(full) == "a small blue dog wearing a red hat"
    assert len({caption(full, wording) for wording in range(WORDINGS)}) == 5
    assert caption(Spec("car", "red", "", "wheels", "")) == "a red car with wheels"
    assert caption(Spec("clown", "blue", "", "hair", "orange")) == "a blue clown with orange hair"
    for index in range(300 * WORDINGS):
        spec, _ = Toybox(0).spec(index % 300)
        text = caption(spec, index // 300)
        for word in (spec.noun, spec.colour, spec.size, spec.part, spec.part_colour):
            assert re.search(rf"\b{re.escape(word)}\b", text), (text, spec)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |^ | $", text), text
        if spec.part:
            verb = "wearing" if spec.part in ACCESSORIES else "with"
            assert text.endswith(f"{verb} {detail_phrase(spec.part, spec.part_colour)}"), text
        else:
            assert not re.search("wearing|with ", text), text


def test_specs_cover_the_whole_vocabulary() -> None:
    box = Toybox(0)
    specs = [box.spec(index)[0] for index in range(2500)]
    assert {spec.noun for spec in specs} == set(NOUNS)
    assert {spec.colour for spec in specs} == {"", *COLOURS} and {spec.size for spec in specs} == set(SIZES)
    assert {spec.part for spec in specs if spec.part in ACCESSORIES} == set(ACCESSORIES)


def test_one_combination_in_sixteen_is_held_out() -> None:
    specs = [Spec("dog", colour, "", part, "red") for colour in COLOURS for part in ACCESSORIES]
    hidden = {(spec.colour, spec.part) for spec in specs if held_out(spec)}
    assert 1 / 32 < len(hidden) / len(specs) < 1 / 8
    assert {("blue", "scarf"), ("pink", "bow"), ("black", "headphones")} <= hidden and ("blue", "hat") not in hidden
    # size and part colour do not matter; without a colour or a part nothing is held out
    assert held_out(Spec("dog", "blue", "small", "scarf", "green")) and not held_out(Spec("dog", "blue"))
    assert not held_out(Spec("dog", "", "", "scarf", "red"))


@pytest.mark.parametrize("split", ["train", "held-out"])
@pytest.mark.parametrize("box", [Toybox, OpenToybox])
def test_split_has_all_or_none_of_the_held_out_combinations(box: type[Toybox], split: Split) -> None:
    for asset in map(box(4, split).asset, range(100)):
        spec = Spec(**{name: getattr(asset, name) for name in Spec.__dataclass_fields__})
        assert held_out(spec) == (split == "held-out"), spec


def test_no_variation_gives_one_object_for_a_spec() -> None:
    for word in NOUNS:
        one, other = (build(Spec(word, "blue"), np.random.default_rng(k), variation=0).primitives for k in (1, 2))
        assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(one, other, strict=True)), word


@pytest.fixture(scope="module")
def assets() -> list[Asset]:
    box = OpenToybox(3)
    return [box.asset(index) for index in range(200)]


def test_captions_name_the_object_and_only_its_colours(assets: list[Asset]) -> None:
    for asset in assets:
        named = [word for word in re.findall(r"[a-z0-9]+", asset.caption) if word in COLOURS]
        own = [asset.colour, asset.part_colour, asset.second_colour]
        assert asset.noun in asset.caption and asset.colour in COLOURS
        assert all(own.count(colour) >= named.count(colour) for colour in named)


def test_captions_name_up_to_two_parts_or_accessories(assets: list[Asset]) -> None:
    for asset in assets:
        spec = Spec(**{name: getattr(asset, name) for name in Spec.__dataclass_fields__})
        details = [word for word, _ in spec.details]
        assert all(word in asset.caption for word in details)
        assert all(word in NOUNS[asset.noun].parts + NOUNS[asset.noun].wears for word in details)
        assert len(details) < 2 or not conflicts(*details)
    worn = [asset for asset in assets if asset.second in NOUNS[asset.noun].wears]
    assert worn and all(asset.second in asset.labels for asset in worn)
    assert all(conflicts(*group[:2]) for group in EXCLUSIVE_GROUPS)  # accessories at the same place
    assert conflicts("ears", "ears") and not conflicts("hat", "scarf")


def test_scattered_cameras_have_different_elevations() -> None:
    position = OpenToybox(8, scattered=1.0).cameras(0)[0][:, :3, 3]
    assert np.ptp(position[:, 2] / np.linalg.norm(position, axis=1)) > 1e-2


def test_accessories_can_be_made_certain() -> None:
    world = OpenToybox(3, accessories=1.0)
    assert all({asset.part, asset.second} & ACCESSORIES.keys() for asset in map(world.asset, range(30)))
    assert world.describe() != OpenToybox(3).describe(), "caches are renewed"
