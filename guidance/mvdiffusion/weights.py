"""Weights of MVDiffusion: checkpoints of the reference implementation (github.com/Tangshitao/MVDiffusion), and our own,
which hold the same blocks under the same names, and of the UNet only how it differs from its base."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers.models import UNet2DConditionModel
from safetensors.torch import save
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.run.disk import write_atomic
from threedgen.run.torch_file import check_architecture, require_finite

from .caa import Encoding, frequencies
from .difference import FIRST, LORA, merge, widened
from .unet import Kind, MultiviewUNet

FORMAT = "threedgen mvdiffusion 1"
PREFIX = "mv_base_model."
OURS = re.compile(r"unet\.|cp_blocks_(encoder|mid|decoder)\.|condition_(conv_in|downblocks|upblocks)\.")
BANDS = ".freq_bands"
TO_DEPTH, ATTENTION = ".attn1.transformer.", ".transformer."
"""In names of the attention, which is a part of blocks to depth."""
WIDTH = re.compile(r"cp_blocks_encoder\.\d+\.(attn1\.)?transformer\.norm1\.weight")
"""Of a block between views, which is as wide as the block of the UNet that it follows."""
OTHER, REMEDY = "these were trained around another base", "take the model around which they were trained"


@dataclass(frozen=True)
class Loaded:
    """A network with the weights of a file, and the names of the tensors in it that have no place there."""

    network: MultiviewUNet
    ignored: tuple[str, ...]

    @property
    def ignored_parts(self) -> dict[str, int]:
        """How many tensors of which part (vae, text_encoder, ...) were ignored."""
        parts = [name.partition(".")[0] for name in self.ignored]
        return {part: parts.count(part) for part in sorted(set(parts))}


def save_blocks(
    path: Path,
    network: MultiviewUNet,
    own: Mapping[str, Tensor] | None = None,
    learnt: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Writes a network, in float16, as what is to be added to its base.

    own: how its UNet differs from the base (``difference``); None: by all of its weights.  learnt: options by which it
    learnt, and should draw.
    """
    state = network.state_dict()
    if own is not None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("unet.")} | dict(own)
    bands = {name: state.pop(name).float() for name in list(state) if name.endswith(BANDS)}  # beyond all float16
    tensors = {name: tensor.detach().half() for name, tensor in state.items()}
    require_finite(tensors, "the weights of MVDiffusion")
    tensors = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in (tensors | bands).items()}
    write_atomic(path, save(tensors, {"format": FORMAT} | {name: str(value) for name, value in learnt.items()}))


def begin_with(network: MultiviewUNet, weights: Mapping[str, Tensor], unet: bool = False) -> None:
    """Gives a network the blocks between views of a state dict, another's of the same widths, and of the other kind the
    attention in them, which differs in what it is told of its keys alone. Raises ConfigError.

    unet: and all weights of its UNet, if it has them.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    same_kind = any(TO_DEPTH in name for name in named) == (network.kind == "depth")
    parts = ("cp_blocks_", "unet.") if unet and is_whole(named) else ("cp_blocks_",)

    def chosen(names: Iterable[str]) -> dict[str, str]:
        """Names, by what both kinds call the same."""
        found = (name for name in names if name.startswith(parts) and not name.endswith(BANDS))
        return {name.replace(TO_DEPTH, ATTENTION): name for name in found if same_kind or ATTENTION in name}

    state, theirs = network.state_dict(), chosen(named)
    ours = chosen(state)
    given = {name: named[theirs[name]] for name in theirs}
    check_architecture(given, {name: state[ours[name]] for name in ours}, "the attention between views")
    require_finite(given, "the weights of MVDiffusion")
    network.load_state_dict({ours[name]: tensor for name, tensor in given.items()}, strict=False)


def difference_in(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """How the UNet of a state dict differs from its base (``difference``); None: it has all of its weights."""
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    if is_whole(named):
        return None
    return {name: tensor for name, tensor in named.items() if name.startswith(("unet.", LORA))}


def is_whole(named: Mapping[str, Tensor]) -> bool:
    """Do tensors, named without the prefix, have all weights of the UNet?"""
    return "unet.time_embedding.linear_1.weight" in named


def differing(unet: UNet2DConditionModel, weights: Mapping[str, Tensor]) -> UNet2DConditionModel:
    """The UNet that the blocks of a file are for: ``unet``, unless they say how theirs differs from it. ConfigError."""
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    there = {tensor.numel() for name, tensor in named.items() if WIDTH.fullmatch(name)}
    if there and there != (here := set(unet.config["block_out_channels"])):
        theirs, its = (", ".join(map(str, sorted(widths))) for widths in (there, here))
        raise ConfigError(f"{OTHER}, whose levels are {theirs} wide, and this one's {its}; {REMEDY}", "blocks")
    first = named.get("unet." + FIRST[0])
    extra = 0 if first is None else first.shape[1] - unet.config["in_channels"]
    if first is None or (extra == 0 and is_whole(named)):
        return unet
    if extra < 0 or first.shape[2:] != unet.conv_in.weight.shape[2:]:
        raise ConfigError(f"{OTHER}; {REMEDY}", "blocks")
    found = widened(unet, extra)
    merge(found, named)
    return found


def convert_released(weights: Mapping[str, Tensor], unet: UNet2DConditionModel) -> Loaded:
    """Builds the network of the reference's state dict around ``unet``, the base that it was trained on.

    Kind, encoding and parts are read off the names. ``unet`` is taken over, and gets its weights from the
    state dict if they are there. Everything else of the network has to be there, and nothing unknown may be in its
    parts; tensors of other parts are ignored, and listed. Raises ConfigError, one sentence, otherwise.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    ours = {name: tensor for name, tensor in named.items() if OURS.match(name)}
    ignored = tuple(name for name in named if name not in ours and not name.startswith(LORA))
    bands = {name: ours.pop(name).float() for name in list(ours) if name.endswith(BANDS)}
    if not any(name.startswith("cp_blocks_mid.") for name in ours):
        raise ConfigError(
            "the weights have no correspondence-aware blocks ('cp_blocks_mid'): they are not MVDiffusion's"
        )
    convolution, condition = "cp_blocks_mid.resnet.conv1.weight" in ours, "condition_conv_in.weight" in ours
    depth = any(TO_DEPTH in name for name in ours)
    kind: Kind = "depth" if depth else "panorama"
    encoding = encoding_of(bands)
    try:
        network = MultiviewUNet(unet, kind, encoding, condition, convolution)
    except ValueError as error:
        raise ConfigError(f"MVDiffusion cannot be put around this UNet: {error}") from None
    if {name for name in ours if name.startswith("unet.")} <= {f"unet.{name}" for name in FIRST}:
        ours = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("unet.")} | ours
    state = network.state_dict()
    check_architecture(
        ours, {name: tensor for name, tensor in state.items() if not name.endswith(BANDS)}, "the MVDiffusion network"
    )
    require_finite(ours, "the weights of MVDiffusion")
    network.load_state_dict(ours, strict=False)  # all but the frequencies, which follow from the encoding
    return Loaded(network.eval(), ignored)


def encoding_of(bands: Mapping[str, Tensor]) -> Encoding:
    """Tells by its frequencies which positional encoding weights were trained with; without any, the reference's."""
    encodings: tuple[Encoding, ...] = ("reference", "capped")
    for encoding in encodings:
        if all(torch.allclose(band.flatten(), frequencies(band.numel(), encoding), 1e-3) for band in bands.values()):
            return encoding
    name = next(iter(bands))
    raise ConfigError(f"the weights have a positional encoding that is not known here: the frequencies {name!r} differ")
