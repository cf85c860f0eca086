import hashlib
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
    colour_value,
    detail_phrase,
    held_out,
)
from threedgen.toybox.world.open_toybox import EXCLUSIVE_GROUPS, SCATTERED_ELEVATION, OpenToybox, conflicts
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.rooms import Rooms
from threedgen.toybox.world.toybox import Split, Toybox, build, random_solids, render_azimuths

ROOT = Path(__file__).parents[2]
ALL_NOUNS = [pytest.param(entry, id=word) for word, entry in NOUNS.items()]
NOUNS_WITH_FRONT = [pytest.param(word, id=word) for word, entry in NOUNS.items() if entry.front]


def example(noun: str, part: str = "", size: str = "large", seed: int = 5) -> Asset:
    return build(Spec(noun, "blue", size, part, "red" if part else ""), np.random.default_rng(seed))


def farthest(asset: Asset) -> float:
    return float(np.linalg.norm(asset.mesh()[0], axis=1).max())


def test_sampled_colours_are_nearest_to_their_name() -> None:
    rng = np.random.default_rng(0)
    names, centres = list(COLOURS), np.array(list(COLOURS.values()))
    for k, name in enumerate(names):
        samples = np.stack([colour_value(name, rng) for _ in range(200)])
        assert samples.min() >= 0 and samples.max() <= 1
        nearest = np.linalg.norm(samples[:, None] - centres, axis=-1).argmin(1)
        assert (nearest == k).mean() > 0.97, name


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


@pytest.mark.parametrize("entry", ALL_NOUNS)
def test_objects_fit_into_the_ball_and_fill_it(entry: Noun) -> None:
    sizes = [size for size in SIZES if size]
    for k, part in enumerate(("", *entry.parts, *entry.wears)):
        size = sizes[k % len(sizes)]
        asset = example(entry.word, part, size, seed=k)
        reach = farthest(asset)
        assert reach <= OBJECT_RADIUS, f"{asset.caption}: {reach}"
        assert reach > (0.5 if size == "small" else 0.9) * OBJECT_RADIUS, f"{asset.caption}: {reach}"
        assert 2 <= len(asset.primitives) <= 60
        assert all(0 <= p.colour.min() and p.colour.max() <= 1 for p in asset.primitives)


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


def digest() -> str:
    sha = hashlib.sha256()
    for split in ("train", "held-out"):
        assets, rgb, c2w, azimuth = Toybox(7, split).batch(range(3, 9), 24, 2, solids_share=0.3)
        for array in (rgb, c2w, azimuth, *(p.matrix for a in assets for p in a.primitives)):
            sha.update(np.ascontiguousarray(array).tobytes())
        sha.update("|".join(asset.caption for asset in assets).encode())
    return sha.hexdigest()


def test_samples_are_identical_in_another_process() -> None:
    code = "from tests.toybox.test_world import digest; print(digest())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "17"}
    run = [sys.executable, "-c", code]
    other = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest()


def open_objects(seed: int, split: Split, indices: range) -> list[np.ndarray]:
    return [np.array(repr(OpenToybox(seed, split).asset(index))) for index in indices]


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
    for index in range(30):
        c2w, fov, azimuth, grey = Toybox(0).cameras(index)
        position = c2w[:, :3, 3].astype(float)
        distance = np.linalg.norm(position, axis=1)
        assert np.allclose(c2w[:, :3, :3] @ c2w[:, :3, :3].swapaxes(1, 2), np.eye(3), atol=1e-5)
        assert np.allclose(c2w[:, :3, 2], position / distance[:, None], atol=1e-5)  # looks along -z at the origin
        assert np.allclose(np.arctan2(position[:, 1], position[:, 0]) % (2 * np.pi), azimuth, atol=1e-4)
        assert np.allclose(np.diff(azimuth) % (2 * np.pi), np.pi / 2, atol=1e-4)
        assert np.allclose(distance, distance[0]) and 35 <= np.rad2deg(fov[0]) <= 45
        assert 0.9 <= distance[0] * np.tan(fov[0] / 2) <= 1.0 and 0.4 <= grey <= 0.6
        assert 0 <= np.arcsin(position[0, 2] / distance[0]) <= np.deg2rad(30.001)


def test_random_solids_have_no_noun_and_fit_into_the_ball() -> None:
    heap = random_solids(np.random.default_rng(3))
    assert 4 <= len(heap.primitives) <= 24 and farthest(heap) <= OBJECT_RADIUS
    assert heap.noun == heap.caption == ""
    assets = Toybox(0).batch(range(60), 16, 1, solids_share=0.5)[0]
    assert 15 < sum(asset.noun == "" for asset in assets) < 45


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
    shares = [np.mean([bool(getattr(spec, key)) for spec in specs]) for key in ("colour", "part", "size")]
    assert np.allclose(shares, (0.9, 0.58, 0.25), atol=0.04), shares


def test_one_combination_in_sixteen_is_held_out() -> None:
    specs = [
        Spec(word, colour, "", part, "red")
        for word, entry in NOUNS.items()
        for colour in COLOURS
        for part in entry.parts + entry.wears
    ]
    hidden = {(spec.noun, spec.colour, spec.part) for spec in specs if held_out(spec)}
    assert 1 / 19 < len(hidden) / len(specs) < 1 / 13
    assert {("dog", "blue", "scarf"), ("dog", "pink", "bow"), ("dog", "black", "headphones")} <= hidden
    assert ("dog", "blue", "hat") not in hidden
    # size and part colour do not matter; without a colour or a part nothing is held out
    assert held_out(Spec("dog", "blue", "small", "scarf", "green")) and not held_out(Spec("dog", "blue"))
    assert not held_out(Spec("dog", "", "", "scarf", "red"))


@pytest.mark.parametrize("split", ["train", "held-out"])
@pytest.mark.parametrize("box", [Toybox, OpenToybox])
def test_split_has_all_or_none_of_the_held_out_combinations(box: type[Toybox], split: Split) -> None:
    for asset in map(box(4, split).asset, range(300)):
        spec = Spec(**{name: getattr(asset, name) for name in Spec.__dataclass_fields__})
        assert held_out(spec) == (split == "held-out"), spec


def test_no_variation_gives_typical_objects_and_cameras() -> None:
    for word in NOUNS:
        one, other = (build(Spec(word, "blue"), np.random.default_rng(k), variation=0).primitives for k in (1, 2))
        assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(one, other, strict=True)), word
        matrices = [example(word, seed=seed).primitives[0].matrix.ravel() for seed in range(4)]
        assert len({tuple(np.round(matrix, 6)) for matrix in matrices}) == 4, "with variation all differ"
    typical, world = Toybox(3, variation=0), Toybox(3)
    for index in range(5):
        assert typical.asset(index).caption == world.asset(index).caption
        a, b = typical.cameras(index)[0], world.cameras(index)[0]
        np.testing.assert_allclose(a[:, :3, :3], b[:, :3, :3], atol=1e-6)
    distances = {round(float(np.linalg.norm(typical.cameras(i)[0][0, :3, 3])), 4) for i in range(5)}
    assert len(distances) == 1 and typical.cameras(0)[3] == 0.5


COUNT = 400


@pytest.fixture(scope="module")
def assets() -> list[Asset]:
    box = OpenToybox(3)
    return [box.asset(index) for index in range(COUNT)]


def test_captions_name_the_object_and_only_its_colours(assets: list[Asset]) -> None:
    stated = 0
    for asset in assets:
        named = [word for word in re.findall(r"[a-z0-9]+", asset.caption) if word in COLOURS]
        own = [asset.colour, asset.part_colour, asset.second_colour]
        assert asset.noun in asset.caption and asset.colour in COLOURS
        assert all(own.count(colour) >= named.count(colour) for colour in named)
        stated += bool(named)
    assert 0.4 < stated / COUNT < 0.75


def test_captions_name_up_to_two_parts_or_accessories(assets: list[Asset]) -> None:
    counts = np.zeros(3, int)
    for asset in assets:
        spec = Spec(**{name: getattr(asset, name) for name in Spec.__dataclass_fields__})
        details = [word for word, _ in spec.details]
        counts[len(details)] += 1
        assert all(word in asset.caption for word in details)
        assert all(word in NOUNS[asset.noun].parts + NOUNS[asset.noun].wears for word in details)
        assert len(details) < 2 or not conflicts(*details)
    assert (counts > 0.08 * COUNT).all()
    worn = [asset for asset in assets if asset.second in NOUNS[asset.noun].wears]
    assert worn and all(asset.second in asset.labels for asset in worn)
    assert all(conflicts(*group[:2]) for group in EXCLUSIVE_GROUPS)  # accessories at the same place
    assert conflicts("ears", "ears") and not conflicts("hat", "scarf")


def test_share_of_objects_has_independent_cameras() -> None:
    box, scattered = OpenToybox(8, scattered=0.5), 0
    for index in range(60):
        c2w, _, azimuth, _ = box.cameras(index)
        position = c2w[:, :3, 3] / np.linalg.norm(c2w[:, :3, 3], axis=1, keepdims=True)
        elevation = np.rad2deg(np.arcsin(position[:, 2]))
        assert np.allclose(np.cos(azimuth - np.arctan2(position[:, 1], position[:, 0])), 1, atol=1e-4)
        if np.ptp(elevation) > 1e-2:
            scattered += 1
            low, high = SCATTERED_ELEVATION
            assert ((low - 0.1 <= elevation) & (elevation <= high + 0.1)).all()
    assert 15 < scattered < 45


def test_share_of_objects_with_accessories() -> None:
    def wearing(share: float) -> int:
        box = OpenToybox(3, accessories=share)
        return sum(bool({a.part, a.second} & ACCESSORIES.keys()) for a in map(box.asset, range(80)))

    assert wearing(0.0) < 25 and 30 < wearing(0.5) < 60 and wearing(1.0) == 80
    assert OpenToybox(3, accessories=0.5).describe() != OpenToybox(3).describe()
