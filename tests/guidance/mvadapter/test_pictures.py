"""Reference pictures: an object in the middle of grey."""

from __future__ import annotations

import pytest
import torch

from threedgen.guidance.mvadapter.pictures import framed


def test_the_object_fills_most_of_a_grey_picture() -> None:
    cut = torch.zeros(40, 50, 4)
    cut[5:25, 30:40] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    cut[0:30, 0:20, :3] = 1.0  # is not seen
    picture = framed(cut, 40, 60)
    grey = (picture - 0.5).abs().amax(-1) < 1e-3
    rows, columns = (~grey).nonzero(as_tuple=True)
    assert rows.min() in (2, 3, 4) and rows.max() in (35, 36, 37)  # 36 of 40 rows, with the pixel around it
    assert columns.min() + columns.max() == pytest.approx(59, abs=1)
    torch.testing.assert_close(picture[20, 30], torch.tensor([1.0, 0.0, 0.0]))
    assert picture.min() >= 0 and picture.max() <= 1
