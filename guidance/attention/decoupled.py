"""Attention branches beside the frozen self-attention of a UNet (MV-Adapter, arXiv 2412.03632, section 4.2, eq. 3).

    out = self-attention(x) + s_mv multi-view attention(x) + s_ref attention(x, features of a reference image)

x is the input of a layer; s_mv and s_ref are scales. A new branch starts with the query, key and value weights of the
self-attention and a zero output layer. A batch holds B objects with V views each; the views of an object are
consecutive. Tensors have the names of MV-Adapter's released weights.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from threedgen.guidance.attention.joined import trains_on_cpu
from threedgen.guidance.options import Arrangement, Layout

Branch = Literal["mv", "ref"]
Processor = Callable[..., Tensor]
"""Attention processor of diffusers: function (attention layer, input (B, L, C), ...) -> output (B, L, C)."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function (queries, keys, values), each (..., L, C) -> attention output (..., L, C), per sequence of L tokens."""

SIDES, RING = 4, (2, 4, 5)
"""Views of the layout "rowcol", whose order is front, right, back, left, top, bottom. The first SIDES views attend to
each other along image rows. The views with the indices RING (back, top, bottom) and the front view, mirrored
left-right, attend to each other along columns."""


class DecoupledAttnProcessor(nn.Module):
    """Attention processor of diffusers: the layer's original processor plus trainable attention branches (MV-Adapter).

    Its output (B, L, C) is the output of the original processor plus the scaled output of each branch.

    Attributes:
        base: original processor of the layer.
        name: key of the layer in `unet.attn_processors`, "PATH.attn1.processor" (self-attention) or
            "PATH.attn2.processor" (cross-attention). Features of reference images are dicts with the same keys.
        branches: "mv" (attention to all views of the object), "ref" (to a reference image), both or none. Layers of
            cross-attention have none.
    """

    to_q_ref: nn.Module
    to_out_mv: nn.Module
    to_out_ref: nn.Module

    def __init__(
        self,
        base: Processor,
        name: str,
        width: int = 0,
        branches: Sequence[Branch] = (),
        layout: Layout = "row",
        arrangement: Arrangement = "parallel",
    ) -> None:
        super().__init__()
        self.base, self.name, self.branches = base, name, tuple(branches)
        self.layout, self.arrangement = layout, arrangement
        for branch in self.branches:
            for letter in "qkv":
                self.add_module(f"to_{letter}_{branch}", nn.Linear(width, width, bias=False))
            self.add_module(f"to_out_{branch}", nn.Sequential(nn.Linear(width, width)))

    @torch.no_grad()
    def initialise(self, attn: Attention) -> None:
        for branch in self.branches:
            for letter in "qkv":
                getattr(self, f"to_{letter}_{branch}").weight.copy_(getattr(attn, f"to_{letter}").weight)
            for parameter in getattr(self, f"to_out_{branch}").parameters():
                parameter.zero_()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        n_view: int = 1,
        latent_size: tuple[int, int] | None = None,
        use_mv: bool = True,
        use_ref: bool = True,
        mv_scale: float = 1.0,
        ref_scale: float = 1.0,
        cache_hidden_states: dict[str, Tensor] | None = None,
        ref_hidden_states: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the output of the layer (B V, L, C), for B objects with V views of L tokens each.

        In self-attention, it is the output of the layer's original processor plus the outputs of the added branches:
        "mv" attends to all views of the object, "ref" to a reference image. If `encoder_hidden_states` is given
        (cross-attention), it is the output of the original processor alone.

        Args:
            attn, encoder_hidden_states, attention_mask, temb: the usual arguments of diffusers' attention processors.
            hidden_states: input (B V, L, C).
            n_view: number V of views per object.
            latent_size: (h, w) of the UNet's input, needed by the branch "mv"; None only if "mv" is not applied.
            use_mv, use_ref: whether to apply the branch "mv" or "ref", if the layer has it.
            mv_scale, ref_scale: factors of the branches' outputs.
            cache_hidden_states: dict to which self-attention adds its input (B V, L, C) under the layer's name, the
                attribute `name`; or None.
            ref_hidden_states: layer inputs (R, L', C) by layer name, which a pass with R reference images stored in its
                `cache_hidden_states`. Each image serves B V / R consecutive views. None: the "ref" branch attends to
                zeros.
        """
        out: Tensor = self.base(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if encoder_hidden_states is not None:
            return out
        if cache_hidden_states is not None:
            cache_hidden_states[self.name] = hidden_states.clone()
        for branch in self.branches:
            x = hidden_states + out if self.arrangement == "serial" else hidden_states
            # the base also divides its output by the rescale factor
            if branch == "mv" and use_mv:
                out = out + mv_scale / attn.rescale_output_factor * self._views(attn.heads, x, n_view, latent_size)
            elif branch == "ref" and use_ref:
                out = out + ref_scale / attn.rescale_output_factor * self._reference(attn.heads, x, ref_hidden_states)
        return out

    def _views(self, heads: int, x: Tensor, n_view: int, latent_size: tuple[int, int] | None) -> Tensor:
        size = token_grid(x.shape[1], latent_size)
        maps = [layer(x).unflatten(1, size).unflatten(0, (-1, n_view)) for layer in self._layers("qkv", "mv")]
        mixed = LAYOUTS[self.layout](partial(attend, heads=heads), *maps)
        return self.to_out_mv(mixed.reshape(x.shape))

    def _reference(self, heads: int, x: Tensor, cache: Mapping[str, Tensor] | None) -> Tensor:
        features = x.new_zeros(1, 1, x.shape[-1]) if cache is None else cache[self.name].to(x)
        keys = (layer(features) for layer in self._layers("kv", "ref"))
        k, v = (part.repeat_interleave(len(x) // len(features), dim=0) for part in keys)
        return self.to_out_ref(attend(self.to_q_ref(x), k, v, heads))

    def _layers(self, letters: str, branch: Branch) -> list[nn.Module]:
        return [getattr(self, f"to_{letter}_{branch}") for letter in letters]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute multi-head attention from queries q (..., L, C) to keys k and values v (..., S, C); return (..., L, C).

    Each of the `heads` heads has C / heads channels. The leading axes (...) are batch axes, equal in q, k and v.
    """
    queries, keys, values = (part.flatten(0, -3).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    if trains_on_cpu(q):
        mixed = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1).to(values) @ values
    else:
        mixed = F.scaled_dot_product_attention(queries, keys, values)
    return mixed.transpose(1, 2).reshape(q.shape)


def token_grid(count: int, latent_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of the feature map with `count` tokens, in a UNet for inputs of size `latent_size`.

    `latent_size` is (height, width). Each resolution level of the UNet halves both, rounded up. The result is the size
    of the first level with at most `count` tokens. `latent_size` None raises AssertionError.
    """
    assert latent_size is not None
    height, width = latent_size
    while height * width > count:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def _rows(attention: Attend, *maps: Tensor) -> Tensor:
    # each token attends to its image row in all views; `maps` are q, k and v, each (B, V, h, w, C)
    q, k, v = (part.transpose(1, 2).flatten(2, 3) for part in maps)
    return attention(q, k, v).unflatten(2, (maps[0].shape[1], -1)).transpose(1, 2)


def _columns(attention: Attend, *maps: Tensor) -> Tensor:
    return _rows(attention, *(part.transpose(2, 3) for part in maps)).transpose(2, 3)


def _rows_and_columns(attention: Attend, *maps: Tensor) -> Tensor:
    # Attends along the rows of front, right, back, left and along the columns of front, back, top, bottom; front and
    # back get the mean of both. `maps` are q, k and v, each (B, 6, h, w, C). The top and bottom cameras have the
    # azimuth of the back camera, so the front map is mirrored left-right before the attention along columns.
    if (n_view := maps[0].shape[1]) != SIDES + 2:
        raise ValueError(f"rowcol needs six views: front, right, back, left, top, bottom (got {n_view})")
    sides = _rows(attention, *(part[:, :SIDES] for part in maps))
    # slices, since a list as index would be copied to the GPU each time
    parts = ([part[:, :1].flip(3), *(part[:, k : k + 1] for k in RING)] for part in maps)
    ring = _columns(attention, *(torch.cat(part, 1) for part in parts))
    front, back = (sides[:, 0] + ring[:, 0].flip(2)) / 2, (sides[:, 2] + ring[:, 1]) / 2
    return torch.stack([front, sides[:, 1], back, sides[:, 3], ring[:, 2], ring[:, 3]], dim=1)


LAYOUTS: dict[Layout, Callable[..., Tensor]] = {"row": _rows, "rowcol": _rows_and_columns}


def decouple(
    unet: UNet2DConditionModel,
    branches: Sequence[Branch] = ("mv", "ref"),
    layout: Layout = "row",
    arrangement: Arrangement = "parallel",
) -> None:
    """Add attention branches to every self-attention layer of a UNet, in place; earlier branches are removed.

    The output of new branches is zero until they are trained.

    Args:
        branches: "mv" attends to all views of the object, "ref" to a reference image.
        layout: tokens that a token attends to in "mv". "row": those in its image row, in all views. "rowcol", for the
            six views front, right, back, left, top, bottom of a mesh, has two groups of views. Front and back are in
            both, and their two outputs are averaged:

            - Tokens of front, right, back and left attend to those in their image row, in the views of this group.
            - Tokens of front, back, top and bottom attend to those in their image column, in the views of this group.
              The front view is mirrored left-right for this, because its camera sees left and right swapped, compared
              with the other three.
        arrangement: input of a branch. "parallel": the input of the layer. "serial": that input plus the outputs of the
            self-attention and of the preceding branches.
    """
    processors: dict[str, Any] = {}  # diffusers' type lists its own processors only
    for name, old in unet.attn_processors.items():
        attn: Any = unet.get_submodule(name.removesuffix(".processor"))
        own = branches if name.endswith(".attn1.processor") else ()
        base = old.base if isinstance(old, DecoupledAttnProcessor) else cast(Processor, old)
        with attn.to_q.weight.device:
            new = DecoupledAttnProcessor(base, name, attn.to_q.in_features, own, layout, arrangement)
        new.initialise(attn)
        processors[name] = new.to(attn.to_q.weight.dtype)
    unet.set_attn_processor(processors)


def branch_processors(unet: UNet2DConditionModel) -> dict[str, DecoupledAttnProcessor]:
    """Return the attention processors with branches that `decouple` added: "PATH.attn1.processor" -> processor."""
    return {
        name: processor
        for name, processor in unet.attn_processors.items()
        if isinstance(processor, DecoupledAttnProcessor) and processor.branches
    }
