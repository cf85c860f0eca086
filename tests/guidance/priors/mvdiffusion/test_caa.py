"""Correspondence-aware attention: initial identity, plain reference, chunking, masking."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import awaken, ring, wall
from threedgen.guidance.priors.mvdiffusion import caa
from threedgen.guidance.priors.mvdiffusion.caa import DepthBlock, PanoramaBlock, PositionalEncoding, frequencies

CPU = torch.device("cpu")


def features(views: int = 8, width: int = 32, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(views, width, *size, generator=torch.Generator().manual_seed(0))


def output_and_gradients(block: PanoramaBlock | DepthBlock, x: Tensor, keys, n_view: int) -> tuple[Tensor, ...]:
    out = block(x, keys, n_view)
    return out, *torch.autograd.grad(out.square().mean(), [x, *block.parameters()])


def test_untrained_blocks_are_identity() -> None:
    x = features()
    assert torch.equal(PanoramaBlock(32)(x, ring().keys(8, 8, CPU), 8), x)
    x = features(3, 64, (4, 6))
    assert torch.equal(DepthBlock(64, "capped")(x, wall().keys(4, 6, CPU), 3), x)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(3, 64, (4, 6)).requires_grad_()
    keys = wall().keys(4, 6, CPU)
    block = awaken(DepthBlock(64))
    results = []
    for chunk, kept in ((caa.CHUNK["cpu"], caa.MAX_KEPT), (caa.CHUNK["cpu"], 0), (1, 0), (64 * 9, caa.MAX_KEPT)):
        monkeypatch.setitem(caa.CHUNK, "cpu", chunk)
        monkeypatch.setattr(caa, "MAX_KEPT", kept)
        results.append(output_and_gradients(block, x, keys, 3))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [PanoramaBlock, DepthBlock])
def test_views_together_give_the_same_as_one_by_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panorama = kind is PanoramaBlock
    x = (features() if panorama else features(3, 64, (4, 6))).requires_grad_()
    keys = (ring().keys(8, 8, CPU) if panorama else wall(step=1.6).keys(4, 6, CPU)) * 2
    x = torch.cat([x, 2 * x])
    block, groups = awaken(kind(x.shape[1])), caa.view_groups
    alone = output_and_gradients(block, x, keys, len(x) // 2)
    monkeypatch.setattr(caa, "view_groups", lambda keys, device: groups(keys, torch.device("cuda")))
    assert len(caa.view_groups(keys, CPU)) == (1 if panorama else 2)  # the middle one of three has more neighbours
    torch.testing.assert_close(output_and_gradients(block, x, keys, len(x) // 2), alone, rtol=1e-4, atol=1e-6)


def test_masked_keys_take_part_in_softmax_as_bias_of_norm() -> None:
    block, x = awaken(PanoramaBlock(32)), features()
    keys = ring().keys(8, 8, CPU)[0]
    nothing = [type(keys)(keys.views, keys.places, torch.zeros_like(keys.mask), keys.relation)] * 8
    other = features() + 5  # of the other views
    other[0] = x[0]
    with torch.no_grad():
        torch.testing.assert_close(block(x, nothing, 8)[0], block(other, nothing, 8)[0])
        assert (block(x, nothing, 8)[0] - x[0]).abs().max() > 1e-3


def test_scenes_of_a_batch_are_independent() -> None:
    block, keys = awaken(PanoramaBlock(32)), ring().keys(8, 8, CPU)
    one, two = features(), features() * 2
    with torch.no_grad():
        both = block(torch.cat([one, two]), keys, 8)
        torch.testing.assert_close(both, torch.cat([block(one, keys, 8), block(two, keys, 8)]))


def test_frequencies_of_both_encodings() -> None:
    assert frequencies(4, "reference").tolist() == [1, 2, 4, 8]
    assert frequencies(160, "reference")[64].item() == pytest.approx(5000, rel=1e-3)
    capped = frequencies(80, "capped")
    assert capped[0] == 0.25 and capped[-1] == 64


def test_capped_depth_encoding_takes_odd_token_count() -> None:
    x = torch.rand(3, 1, 1)
    out = PositionalEncoding(32, 1, "capped")(x)
    assert out.shape == (3, 1, 32)
    torch.testing.assert_close(out[..., :16].square() + out[..., 16:].square(), torch.ones(3, 1, 16))


def test_block_refuses_width_that_is_no_multiple_of_head() -> None:
    with refused(None, 32, 48, kind=ValueError):
        PanoramaBlock(48)
