"""Attention to corresponding places: what it is at the beginning, what it does, what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny_mvdiffusion import awaken, ring, wall
from threedgen.geometry.warp import sample
from threedgen.guidance.mvdiffusion.caa import Attention, DepthBlock, PanoramaBlock, PositionalEncoding, frequencies

CPU = torch.device("cpu")


def features(views: int = 8, width: int = 32, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(views, width, *size, generator=torch.Generator().manual_seed(0))


def test_new_blocks_are_the_identity() -> None:
    x = features()
    assert torch.equal(PanoramaBlock(32)(x, ring().keys(8, 8, CPU), 8), x)
    x = features(3, 64, (4, 6))
    assert torch.equal(DepthBlock(64, "capped")(x, wall().keys(4, 6, CPU), 3), x)


def test_attention_is_the_plain_one() -> None:
    torch.manual_seed(0)
    attention, query, keys = Attention(64), torch.randn(5, 64), torch.randn(5, 7, 64)
    q, k, v = attention.to_q(query[:, None]), attention.to_k(keys), attention.to_v(keys)
    heads = [part.unflatten(-1, (2, 32)).transpose(1, 2) for part in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1)
    torch.testing.assert_close(attention(query, keys), attention.to_out(expected))


def test_neither_chunks_nor_checkpoints_change_anything() -> None:
    x = features(3, 64, (4, 6)).requires_grad_()
    keys = wall().keys(4, 6, CPU)
    block = awaken(DepthBlock(64))
    block.attn1.by_token = False
    results = []
    for block.attn1.chunk, block.attn1.checkpointing in ((None, False), (1, True), (64 * 9, False)):
        out = block(x, keys, 3)
        results.append((out, *torch.autograd.grad(out.square().mean(), [x, *block.parameters()])))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scenes", [1, 2])
@pytest.mark.parametrize(
    ("block", "keys", "size", "n_view"),
    [
        (PanoramaBlock(64), ring().keys(8, 8, CPU), (8, 8), 8),
        (PanoramaBlock(96, "capped"), ring().keys(4, 4, CPU), (4, 4), 8),
        (DepthBlock(64), wall().keys(4, 6, CPU), (4, 6), 3),
        (DepthBlock(64, "capped"), wall().keys(4, 6, CPU), (4, 6), 3),
    ],
)
def test_cpus_compute_the_same(block: PanoramaBlock | DepthBlock, keys, size, n_view: int, scenes: int) -> None:
    attention = getattr(awaken(block), "attn1", block)
    x = features(scenes * n_view, len(attention.transformer.norm1.weight), size).requires_grad_()
    results = []
    for attention.by_token in (False, True):
        out = block(x, keys, n_view)
        results.append((out, *torch.autograd.grad(out.square().mean(), [x, *block.parameters()])))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_a_token_sees_only_what_corresponds() -> None:
    """A change in one place of a view reaches its neighbours where their keys are, and nothing else."""
    x, keys = features(), ring().keys(8, 8, CPU)
    block = awaken(PanoramaBlock(32))
    other = x.clone()
    other[2, 0, 3, 1] += 1  # of all channels alike the norm would take away
    with torch.no_grad():
        moved = (block(other, keys, 8) - block(x, keys, 8)).abs().amax(1) > 1e-6
    spot = torch.zeros(8, 1, 8, 8)
    spot[2, 0, 3, 1] = 1
    for view in range(8):
        reads = sample(spot[keys[view].views], keys[view].places)[:, 0] * keys[view].mask
        expected = reads.sum((0, 2)).view(8, 8) > 1e-4
        if view == 2:
            expected[3, 1] = True
        assert torch.equal(moved[view], expected)
    assert moved[1].any() and not moved[3, :, 4:].any() and not moved[5].any()


def test_masked_keys_stay_in_the_softmax_as_the_bias_of_the_norm() -> None:
    block, x = awaken(PanoramaBlock(32)), features()
    keys = ring().keys(8, 8, CPU)[0]
    nothing = [type(keys)(keys.views, keys.places, torch.zeros_like(keys.mask), keys.relation)] * 8
    other = features() + 5  # what the other views have, does not matter
    other[0] = x[0]
    with torch.no_grad():
        torch.testing.assert_close(block(x, nothing, 8)[0], block(other, nothing, 8)[0])
        assert (block(x, nothing, 8)[0] - x[0]).abs().max() > 1e-3


def test_scenes_of_a_batch_do_not_see_each_other() -> None:
    block, keys = awaken(PanoramaBlock(32)), ring().keys(8, 8, CPU)
    one, two = features(), features() * 2
    with torch.no_grad():
        both = block(torch.cat([one, two]), keys, 8)
        torch.testing.assert_close(both, torch.cat([block(one, keys, 8), block(two, keys, 8)]))


def test_frequencies() -> None:
    assert frequencies(4, "reference").tolist() == [1, 2, 4, 8]
    assert frequencies(160, "reference")[64].item() == pytest.approx(5000, rel=1e-3)
    capped = frequencies(80, "capped")
    assert capped[0] == 0.25 and capped[-1] == 64


def test_capped_encoding_of_depth_takes_any_number_of_tokens() -> None:
    x = torch.rand(3, 1, 1)
    out = PositionalEncoding(32, 1, "capped")(x)
    assert out.shape == (3, 1, 32)
    torch.testing.assert_close(out[..., :16].square() + out[..., 16:].square(), torch.ones(3, 1, 16))
    with pytest.raises(ValueError, match="even"):
        PositionalEncoding(32, 1)(x)


def test_the_width_is_a_multiple_of_a_head() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        PanoramaBlock(48)
