"""nerfacc's CUDA functions in plain torch, as its documentation describes them; its own Python around them is used."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import nerfacc.grid
import pytest
import torch
from torch import Tensor

from threedgen.representations import backends

MODULE = "threedgen.representations.march.nerfacc_backend"


class Functions:
    """What nerfacc.cuda looks up in the compiled module."""

    ray_aabb_intersect = staticmethod(nerfacc.grid._ray_aabb_intersect)

    @staticmethod
    def traverse_grids(*given: Any) -> tuple[SimpleNamespace, SimpleNamespace, Tensor]:
        """One grid: from the near plane on step is added to step; a midpoint in a full cell keeps its interval."""
        origins, directions, mask, cells, boxes, t_sorted, _, hits, near, far, step, cone, *more = given
        assert mask.all() and len(cells) == len(boxes) == 1 and cone == 0 and more == [True, True, True, -1, False]
        inputs = (origins, directions, boxes, near, far)
        assert cells.dtype == torch.bool and all(t.dtype == torch.float32 for t in inputs)
        begin, end = t_sorted[:, 0].maximum(near), t_sorted[:, 1].minimum(far)
        low, side = boxes[0, :3], boxes[0, 3:] - boxes[0, :3]
        size = torch.tensor(cells.shape[1:])
        t, found, number = near.clone(), [], 0
        while True:
            middle = t + 0.5 * step
            alive = hits[:, 0] & (begin < end) & (middle < end)
            if not alive.any():
                break
            rays = (alive & (middle >= begin)).nonzero()[:, 0]
            points = origins[rays] + middle[rays, None] * directions[rays]
            cell = ((points - low) / side * size).long().clamp(min=torch.zeros(3, dtype=torch.long), max=size - 1)
            rays = rays[cells[0][cell.unbind(-1)]]
            found += [(ray, number, float(t[ray]), float(t[ray] + step)) for ray in rays.tolist()]
            t, number = t + step, number + 1
        found.sort()
        edges: list[list[object]] = []  # ray, distance, is it a left end, a right end
        for k, (ray, number, left, right) in enumerate(found):
            if k and found[k - 1][:2] == (ray, number - 1):
                edges[-1][2] = True
            else:
                edges.append([ray, left, True, False])
            edges.append([ray, right, False, True])
        return _segments(edges), _segments([[ray, 0.5 * (a + b), True, True] for ray, _, a, b in found]), t

    @staticmethod
    def exclusive_sum(starts: Tensor, counts: Tensor, values: Tensor, normalise: bool, backward: bool) -> Tensor:
        """Of the values before each in its chunk; backward: of those after it."""
        assert not normalise and values.dtype == torch.float32
        out = torch.empty_like(values)
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            part = values[start : start + count]
            sums = part.flip(0).cumsum(0).flip(0) if backward else part.cumsum(0)
            out[start : start + count] = sums - part
        return out


def _segments(rows: list[list[object]]) -> SimpleNamespace:
    ray, t, left, right = zip(*rows, strict=True) if rows else ((), (), (), ())
    return SimpleNamespace(
        vals=torch.tensor(t, dtype=torch.float32), ray_indices=torch.tensor(ray, dtype=torch.long), chunk_starts=None,
        chunk_cnts=None, is_left=torch.tensor(left, dtype=torch.bool), is_right=torch.tensor(right, dtype=torch.bool),
        is_valid=torch.tensor(left, dtype=torch.bool),
    )  # fmt: skip


@pytest.fixture
def nerfacc_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if nerfacc's kernels were built, and for a CPU."""
    monkeypatch.setitem(backends.DEVICE_TYPES, "nerfacc", "cpu")
    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", SimpleNamespace(_C=Functions))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield
    sys.modules.pop(MODULE, None)
