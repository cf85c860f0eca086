"""Reading and writing of MVDiffusion weights: checkpoints of github.com/Tangshitao/MVDiffusion and our own files.

Our files have the same tensor names. Instead of the whole UNet they contain its `difference` from the 2D model.
"""

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
"""Parts of tensor names: the first is only in blocks with depth, the second in all attention blocks."""
WIDTH = re.compile(r"cp_blocks_encoder\.\d+\.(attn1\.)?transformer\.norm1\.weight")
"""Names of tensors whose length is the channel count of a UNet block."""
OTHER, REMEDY = "the blocks were trained on another base", "take the model that they were trained on"


@dataclass(frozen=True)
class Loaded:
    """Network with loaded weights, and the names of those tensors in the file that are not part of the network."""

    network: MultiviewUNet
    ignored: tuple[str, ...]

    @property
    def ignored_parts(self) -> dict[str, int]:
        """Number of ignored tensors by the first part of their names (vae, text_encoder, ...)."""
        parts = [name.partition(".")[0] for name in self.ignored]
        return {part: parts.count(part) for part in sorted(set(parts))}


def save_blocks(
    path: Path,
    network: MultiviewUNet,
    own: Mapping[str, Tensor] | None = None,
    options: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Write the attention blocks of a network in float16, and the difference of its UNet from the 2D model.

    Args:
        own: `difference` of the UNet from the 2D model; None: write all weights of the UNet.
        options: training options to store as metadata; sampling warns if its options differ.
    """
    state = network.state_dict()
    if own is not None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("unet.")} | dict(own)
    bands = {name: state.pop(name).float() for name in list(state) if name.endswith(BANDS)}  # too large for float16
    tensors = {name: tensor.detach().half() for name, tensor in state.items()}
    require_finite(tensors, "the weights of MVDiffusion")
    tensors = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in (tensors | bands).items()}
    write_atomic(path, save(tensors, {"format": FORMAT} | {name: str(value) for name, value in options.items()}))


def load_blocks(network: MultiviewUNet, weights: Mapping[str, Tensor], unet: bool = False) -> None:
    """Copy attention blocks into a network.

    Blocks of the other kind (panorama or depth) fit too; then only their attention tensors are copied.

    Args:
        weights: state dict with the blocks.
        unet: also copy the weights of the UNet, if `weights` has all of them.

    Raises:
        ConfigError: the blocks have other widths.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    same_kind = any(TO_DEPTH in name for name in named) == (network.kind == "depth")
    parts = ("cp_blocks_", "unet.") if unet and is_whole(named) else ("cp_blocks_",)

    def chosen(names: Iterable[str]) -> dict[str, str]:
        """Return the names of tensors to copy, by names that are equal for both kinds of blocks."""
        found = (name for name in names if name.startswith(parts) and not name.endswith(BANDS))
        return {name.replace(TO_DEPTH, ATTENTION): name for name in found if same_kind or ATTENTION in name}

    state, theirs = network.state_dict(), chosen(named)
    ours = chosen(state)
    loaded = {name: named[theirs[name]] for name in theirs}
    check_architecture(loaded, {name: state[ours[name]] for name in ours}, "the attention between views")
    require_finite(loaded, "the weights of MVDiffusion")
    network.load_state_dict({ours[name]: tensor for name, tensor in loaded.items()}, strict=False)


def difference_in(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the UNet's `difference` from the 2D model in a state dict; None if it has all weights of the UNet."""
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    if is_whole(named):
        return None
    return {name: tensor for name, tensor in named.items() if name.startswith(("unet.", LORA))}


def is_whole(named: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict, with names without prefix, has all weights of the UNet."""
    return "unet.time_embedding.linear_1.weight" in named


def with_difference(unet: UNet2DConditionModel, weights: Mapping[str, Tensor]) -> UNet2DConditionModel:
    """Return the UNet for the attention blocks in `weights`: a copy of `unet` with their `difference` applied.

    Without a difference, `unet` itself is returned.

    Raises:
        ConfigError: the blocks were trained on another 2D model.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    there = {tensor.numel() for name, tensor in named.items() if WIDTH.fullmatch(name)}
    if there and there != (here := set(unet.config["block_out_channels"])):
        theirs, its = (", ".join(map(str, sorted(widths))) for widths in (there, here))
        raise ConfigError(f"{OTHER}, with levels of {theirs} channels instead of {its}; {REMEDY}", "blocks")
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
    """Build a network from a state dict around `unet`, which then belongs to the network.

    The tensors decide the kind of blocks, the positional encoding and whether there is a branch for known views. The
    weights of the UNet may be missing. Tensors of other modules are ignored and listed in the result.

    Raises:
        ConfigError: tensors of the attention blocks are missing, unknown or not finite.
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
        raise ConfigError(f"MVDiffusion's blocks cannot be added to this UNet: {error}") from None
    if {name for name in ours if name.startswith("unet.")} <= {f"unet.{name}" for name in FIRST}:
        ours = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("unet.")} | ours
    state = network.state_dict()
    check_architecture(
        ours, {name: tensor for name, tensor in state.items() if not name.endswith(BANDS)}, "the MVDiffusion network"
    )
    require_finite(ours, "the weights of MVDiffusion")
    network.load_state_dict(ours, strict=False)  # without the frequencies, which follow from the encoding
    return Loaded(network.eval(), ignored)


def encoding_of(bands: Mapping[str, Tensor]) -> Encoding:
    """Return the positional encoding with the frequencies `bands`; "reference" if `bands` is empty.

    Raises ConfigError for unknown frequencies.
    """
    encodings: tuple[Encoding, ...] = ("reference", "capped")
    for encoding in encodings:
        if all(torch.allclose(band.flatten(), frequencies(band.numel(), encoding), 1e-3) for band in bands.values()):
            return encoding
    name = next(iter(bands))
    raise ConfigError(f"the weights have an unknown positional encoding: the frequencies {name!r} differ")
