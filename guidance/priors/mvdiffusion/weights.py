"""Read and write MVDiffusion weights: checkpoints of github.com/Tangshitao/MVDiffusion and files of threedgen.

Files of threedgen have the same tensor names. Instead of the whole UNet they may contain its `difference` from the 2D
model: a first layer with additional input channels, and low-rank updates (LoRA) of other layers.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from safetensors.torch import save
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import short
from threedgen.guidance.attention.joined import unet_from_config
from threedgen.guidance.losses.lora import LoRA
from threedgen.guidance.weights.files import warn_unused
from threedgen.run.disk import write_atomic
from threedgen.run.torch_file import check_architecture, require_finite

from .caa import Encoding, frequencies
from .unet import Kind, MultiviewUNet

FIRST = ("conv_in.weight", "conv_in.bias")
LORA = "lora."
FORMAT = "threedgen mvdiffusion 1"
PREFIX = "mv_base_model."
OURS = re.compile(r"unet\.|cp_blocks_(encoder|mid|decoder)\.|condition_(conv_in|downblocks|upblocks)\.")
BANDS = ".freq_bands"
TO_DEPTH, ATTENTION = ".attn1.transformer.", ".transformer."
"""Parts of tensor names: the first occurs only in blocks for views with depth, the second in all attention blocks."""


def save_blocks(path: Path, network: MultiviewUNet, own: Mapping[str, Tensor] | None = None) -> None:
    """Write the weights of `network` to a safetensors file, in float16 (frequencies of encodings in float32).

    `own` are the tensors in which the UNet differs from the 2D model that it was made from (result of `difference`).
    They are written instead of the whole UNet. None: the whole UNet is written. Raises ConfigError if a value is not
    finite in float16.
    """
    state = network.state_dict()
    if own is not None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("unet.")} | dict(own)
    bands = {name: state.pop(name).float() for name in list(state) if name.endswith(BANDS)}  # too large for float16
    tensors = {name: tensor.detach().half() for name, tensor in state.items()}
    require_finite(tensors, "the weights of MVDiffusion")
    tensors = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in (tensors | bands).items()}
    write_atomic(path, save(tensors, {"format": FORMAT}))


def load_blocks(network: MultiviewUNet, weights: Mapping[str, Tensor], unet: bool = False) -> None:
    """Copy the attention blocks between views from the state dict `weights` into `network`, in place.

    - The blocks in `weights` and in `network` are of the same kind (panorama or depth): whole blocks are copied. If
      `unet` is True and `weights` has all layers of the UNet, these are copied too. Other weights have at most its
      first convolution and low-rank updates (LoRA), which are ignored here; `with_difference` applies them.
    - The kinds differ: only what both have is copied, the attention and feed-forward layers of the blocks. The residual
      convolutions of depth blocks are left out, and `unet` has no effect.

    Raises ConfigError if tensors do not fit, or if blocks of the same kind were trained with another positional
    encoding.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    same_kind = any(TO_DEPTH in name for name in named) == (network.kind == "depth")
    bands = {name: tensor.float() for name, tensor in named.items() if name.endswith(BANDS)}
    if same_kind and (encoding := encoding_of(bands)) != network.encoding:
        raise ConfigError(f"the attention was trained with another encoding. Set training.encoding={encoding}")
    parts = ("cp_blocks_", "unet.") if unet and is_whole(named) else ("cp_blocks_",)

    def chosen(names: Iterable[str]) -> dict[str, str]:
        found = (name for name in names if name.startswith(parts) and not name.endswith(BANDS))
        return {name.replace(TO_DEPTH, ATTENTION): name for name in found if same_kind or ATTENTION in name}

    state, theirs = network.state_dict(), chosen(named)
    ours = chosen(state)
    loaded = {name: named[theirs[name]] for name in theirs}
    check_architecture(loaded, {name: state[ours[name]] for name in ours}, "the attention between views")
    require_finite(loaded, "the weights of MVDiffusion")
    network.load_state_dict({ours[name]: tensor for name, tensor in loaded.items()}, strict=False)


def difference_in(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors of MVDiffusion weights (a state dict) that change the UNet of the 2D model, by name.

    These are the first convolution and low-rank updates (LoRA) of other layers. Returns None if `weights` has the whole
    UNet instead.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    if is_whole(named):
        return None
    return {name: tensor for name, tensor in named.items() if name.startswith(("unet.", LORA))}


def is_whole(named: Mapping[str, Tensor]) -> bool:
    return "unet.time_embedding.linear_1.weight" in named


def with_difference(unet: UNet2DConditionModel, weights: Mapping[str, Tensor]) -> UNet2DConditionModel:
    """Return the 2D model to which `build_network` or `load_blocks` can add the weights of MVDiffusion in `weights`.

    Besides attention blocks, the state dict `weights` may have a fine-tuned UNet: all its layers, or only its
    difference from the 2D model, a first convolution and low-rank updates (LoRA) of other layers. The first convolution
    may have additional input channels, which `unet`, the 2D model, lacks.

    - `weights` has only the difference: the result is a copy of `unet` with this convolution and these updates.
    - `weights` has all layers, and additional input channels: the result is a copy of `unet` with the first convolution
      of `weights`. `build_network` or `load_blocks` copies the other layers later.
    - Otherwise (nothing of the UNet, or all layers but no additional channels), the result is `unet` itself.

    Raises ConfigError if `weights` does not fit `unet`, because it was trained with another 2D model.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    first = named.get("unet." + FIRST[0])
    extra = 0 if first is None else first.shape[1] - unet.config["in_channels"]
    if first is None or (extra == 0 and is_whole(named)):
        return unet
    if extra < 0 or first.shape[2:] != unet.conv_in.weight.shape[2:]:
        raise ConfigError("the blocks were trained on another base; take the model of their training", "blocks")
    found = widened(unet, extra)
    merge(found, named)
    found.load_state_dict({name: named["unet." + name] for name in FIRST if "unet." + name in named}, strict=False)
    return found


def build_network(weights: Mapping[str, Tensor], unet: UNet2DConditionModel) -> MultiviewUNet:
    """Build a UNet with attention between views around the 2D model `unet`, with weights from a state dict, `weights`.

    The tensors in `weights` decide the kind of the attention blocks (panorama or depth), their positional encoding, and
    whether the network has a branch that encodes known views. If `weights` has a whole UNet or its first convolution,
    these are copied into `unet`.

    Always pass the result of `with_difference(unet, weights)` as `unet`. It has the number of input channels that
    `weights` needs, and the low-rank updates (LoRA) in `weights`, which this function ignores. Raises ConfigError if
    tensors do not fit the network or are not finite.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    ours = {name: tensor for name, tensor in named.items() if OURS.match(name)}
    warn_unused([name for name in named if name not in ours and not name.startswith(LORA)], "of MVDiffusion")
    bands = {name: ours.pop(name).float() for name in list(ours) if name.endswith(BANDS)}
    if not any(name.startswith("cp_blocks_mid.") for name in ours):
        raise ConfigError("these are no weights of MVDiffusion: no correspondence-aware blocks ('cp_blocks_mid')")
    convolution, condition = "cp_blocks_mid.resnet.conv1.weight" in ours, "condition_conv_in.weight" in ours
    kind: Kind = "depth" if any(TO_DEPTH in name for name in ours) else "panorama"
    try:
        network = MultiviewUNet(unet, kind, encoding_of(bands), condition, convolution)
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
    return network.eval()


def encoding_of(bands: Mapping[str, Tensor]) -> Encoding:
    """Return the name of the positional encoding of MVDiffusion weights, which follows from its frequencies.

    `bands` has the tensors of frequencies of a state dict, by name. "reference": frequencies of the authors' weights,
    also returned for {}. "capped": frequencies from 1/4 to 64. Raises ConfigError for other frequencies.
    """
    encodings: tuple[Encoding, ...] = ("reference", "capped")
    for encoding in encodings:
        if all(torch.allclose(band.flatten(), frequencies(band.numel(), encoding), 1e-3) for band in bands.values()):
            return encoding
    name = next(iter(bands))
    raise ConfigError(f"the weights have an unknown positional encoding: the frequencies {short(name)} differ")


def widened(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """Return a copy of `unet` with `extra` additional input channels, whose weights are zero."""
    channels = unet.config["in_channels"] + extra
    wide: Any = unet_from_config(unet.config, in_channels=channels)
    state = dict(unet.state_dict())
    first = state[FIRST[0]]
    state[FIRST[0]] = torch.cat([first, first.new_zeros(first.shape[0], extra, *first.shape[2:])], 1)
    wide.load_state_dict(state)
    wide.set_attn_processor(unet.attn_processors)
    return wide.to(unet.device).train(unet.training)


def difference(unet: UNet2DConditionModel, lora: LoRA | None) -> dict[str, Tensor]:
    """Return the tensors in which a fine-tuned UNet differs from its 2D model, by their names in weight files.

    "unet.conv_in.weight" and "unet.conv_in.bias" are the first convolution of `unet`, which may have additional input
    channels. "lora.LAYER.down" and "lora.LAYER.up" are the two matrices of `lora` for each layer that it changes. If
    `lora` is None, the result has only the first convolution.
    """
    state = unet.state_dict()
    found = {f"unet.{name}": state[name] for name in FIRST}
    if lora is not None:
        for name, down, up in zip(lora.names, lora.down, lora.up, strict=True):
            found |= {f"{LORA}{name}.down": down.detach(), f"{LORA}{name}.up": up.detach()}
    return found


def load_difference(unet: UNet2DConditionModel, lora: LoRA, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights of the first convolution into `unet`, and low-rank updates of other layers into `lora`, in place.

    `tensors` has both by name, as returned by `difference`. Raises ConfigError if names or shapes do not fit.
    """
    ours = difference(unet, lora)
    check_architecture(
        {name: tensors[name] for name in tensors if name.startswith(LORA) or name in ours}, ours, "the additions"
    )
    with torch.no_grad():
        unet.conv_in.load_state_dict({name.rpartition(".")[2]: tensors[f"unet.{name}"] for name in FIRST})
        for name, down, up in zip(lora.names, lora.down, lora.up, strict=True):
            down.copy_(tensors[f"{LORA}{name}.down"])
            up.copy_(tensors[f"{LORA}{name}.up"])


def merge(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor]) -> None:
    """Add the low-rank updates in `tensors` to the weights of layers of `unet`, in place.

    The tensors "lora.LAYER.up" and "lora.LAYER.down" are the two factors of the update of LAYER; other tensors are
    ignored. Raises ConfigError if the UNet has no LAYER, or if their shapes do not fit its weight.
    """
    for name in sorted({key.removeprefix(LORA).rpartition(".")[0] for key in tensors if key.startswith(LORA)}):
        up, down = (tensors.get(f"{LORA}{name}.{side}", torch.empty(0)) for side in ("up", "down"))
        try:
            weight: Any = unet.get_submodule(name).weight
        except AttributeError:
            raise ConfigError(f"the additions to {name!r} do not fit the UNet: they belong to another one") from None
        rank = down.shape[0] if down.ndim else 0
        if (up.shape, down.shape) != ((weight.shape[0], rank), (rank, *weight.shape[1:])):
            raise ConfigError(
                f"the additions {LORA}{name} have the shapes {tuple(up.shape)} (up) and {tuple(down.shape)} (down), "
                f"which do not fit the weight {tuple(weight.shape)}"
            )
        with torch.no_grad():
            weight += (up.float() @ down.float().flatten(1)).view(weight.shape).to(weight)
