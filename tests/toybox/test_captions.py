import re

import numpy as np
import pytest

from threedgen.toybox.world.grammar import ACCESSORIES, COLOURS, NOUNS, Spec
from threedgen.toybox.world.open_toybox import EXCLUSIVE_GROUPS, SCATTERED_ELEVATION, OpenToybox, conflicts
from threedgen.toybox.world.primitives import Asset

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
