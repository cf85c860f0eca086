"""Weights of a subject: a file with the changes that fine-tuning on one subject makes to a prior.

DreamBooth (arXiv 2208.12242) binds a subject to a new word, the identifier. Fine-tuning changes all weights of the
UNet, or adds low-rank matrices to its attention layers (LoRA, rank r). The identifier gets a new row in the text
encoder's embedding table.

Content of the safetensors file (`NAME`: a parameter of the UNet):

    unet.NAME                       tuned minus base weight, bfloat16          kind "difference"
    unet.NAME.lora_A, .lora_B       (r, in), (out, r): weight += scale B A     kind "lora"
    identifier                      (D,) the new row, float32
    subject                         (K + 1, D) caption without the word, and object code of the subject, float32
    metadata                        format, kind, identifier, prompt, scale, check sums of base weights and content
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as to_bytes
from tokenizers import AddedToken
from torch import Tensor, nn

from threedgen.config import ConfigError
from threedgen.config.errors import errors_name_key
from threedgen.run.disk import write_atomic
from threedgen.run.torch_file import read_safetensors

from .addition_files import SUBJECT_FORMAT, subject_card
from .tokens import KNOWN_IDENTIFIER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from threedgen.guidance.priors.latent_diffusion import LatentDiffusion

A, B, SUM = ".lora_A", ".lora_B", "sum"


def checksum(unet: nn.Module, text_encoder: nn.Module) -> str:
    """Return the SHA-256 of the weights of UNet and text encoder as float32, which is independent of file formats."""
    digest = hashlib.sha256()
    for network in (unet, text_encoder):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def content_sum(tensors: Mapping[str, Tensor], card: Mapping[str, str]) -> str:
    """Return the SHA-256 of the tensors of a safetensors file and of its metadata `card`, as a check sum.

    Pass `card` without the keys "format" and "sum", since the result is stored as "sum". The check sum is needed
    because safetensors does not detect changed bytes.
    """
    digest = hashlib.sha256(repr(sorted(card.items())).encode())
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, value.dtype, value.shape)).encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_identifier(tokenizer: PreTrainedTokenizerBase, identifier: str) -> None:
    """Raise ConfigError if `identifier`, a new word such as "[v]", is not one word or is in the vocabulary already."""
    if len(identifier.split()) != 1:
        raise ConfigError("should be one word, such as [v]", "identifier", identifier)
    pieces = tokenizer.tokenize(identifier)
    if len(pieces) == 1 and pieces[0] != tokenizer.unk_token:
        raise ConfigError(KNOWN_IDENTIFIER, "identifier", identifier)


def add_word(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: Any,
    identifier: str | AddedToken,
    row: Tensor | None = None,
    like: str = "",
) -> int:
    """Add the word `identifier` to tokenizer and text encoder, in place, and return its token number.

    `row` (D,) is its embedding; None: the mean embedding of the words in `like`, or of all words if `like` is empty.
    """
    old = token_embedding(text_encoder).weight.detach()
    if row is None:
        numbers = tokenizer(like, add_special_tokens=False).input_ids if like else []
        row = old[torch.tensor(numbers)].mean(0) if numbers else old.mean(0)
    row = row.clone()
    tokenizer.add_tokens([identifier])
    if len(tokenizer) > len(old):
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text_encoder.requires_grad_(False)
    number = tokenizer.get_vocab()[str(identifier)]
    with torch.no_grad():
        token_embedding(text_encoder).weight[number] = row
    return number


def token_embedding(text_encoder: Any) -> nn.Embedding:
    found: nn.Embedding = text_encoder.get_input_embeddings()
    return found


def difference(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the changes of a UNet's weights by fine-tuning: tuned minus base, bfloat16, for changed parameters only.

    The arguments are state dicts. The keys of the result are "unet.NAME", where NAME is that in the state dicts.
    """
    moved = {name: tuned[name].detach().cpu() - base[name].cpu() for name in base}
    return {f"unet.{name}": value.bfloat16().contiguous() for name, value in moved.items() if value.any()}


def low_rank(layers: Iterable[str], down: Iterable[Tensor], up: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return LoRA matrices of a UNet, float32, by their names in the file that DreamBooth training saves.

    The names are "unet.LAYER.weight.lora_A" for `down` and "unet.LAYER.weight.lora_B" for `up`.

    Args:
        layers: names of the linear layers in the UNet.
        down, up: for each layer, a matrix (r, in) and a matrix (out, r), where r is the rank.
    """
    found = {}
    for layer, a, b in zip(layers, down, up, strict=True):
        for end, value in ((A, a), (B, b)):
            found[f"unet.{layer}.weight{end}"] = value.detach().float().cpu().contiguous()
    return found


def write(
    path: Path, changes: Mapping[str, Tensor], row: Tensor, card: Mapping[str, str], subject: Tensor | None = None
) -> None:
    """Write a safetensors file with the changes that DreamBooth made to a prior, atomically and with a check sum.

    Args:
        changes: changes of the UNet, from `difference` or `low_rank`.
        row: embedding (D,) of the identifier, the new word for the subject.
        card: metadata with the keys kind ("difference" or "lora"), identifier, prompt, scale (factor of the product of
            two LoRA matrices) and base (the `checksum` of the base weights).
        subject: embedding (K + 1, D) of the caption without the word; the last row is the object code, a vector of what
            the caption leaves unspecified. None: the base has no object codes.
    """
    tensors = {**changes, "identifier": row.detach().float().cpu().contiguous()}
    if subject is not None:
        tensors["subject"] = subject.detach().float().cpu().contiguous()
    write_atomic(path, to_bytes(tensors, {"format": SUBJECT_FORMAT, **card, SUM: content_sum(tensors, card)}))


def apply(prior: LatentDiffusion, path: Path, strength: float = 1.0, plain: str | None = None) -> None:
    """Apply a file that DreamBooth training on one subject has written: change `prior` in place.

    The file `path` has changes of the UNet's weights and the subject's new word. The changes, times `strength`, are
    added to the weights, and the word is added to the vocabulary. `plain` is the `checksum` of the prior before LoRAs
    and textual inversions were added; the file may have been trained with or without them. Raises ConfigError and
    changes nothing if the file is damaged or was trained from other weights.
    """
    card = subject_card(path)
    wanted = card.get("base", "")
    if wanted != plain and wanted != (base := checksum(prior.unet, prior.text_encoder)):
        raise ConfigError(
            f"{path} was tuned from other weights (SHA-256 {wanted[:12]}..., these have "
            f"{base[:12]}...); set prior.weights to those of its run",
            "personalisation",
        )
    tensors = read_safetensors(path)
    content = {key: value for key, value in card.items() if key not in ("format", SUM)}
    if card.get(SUM) != content_sum(tensors, content):
        raise ConfigError(f"{path} is damaged: its check sum differs; make it again", "personalisation")
    with errors_name_key("personalisation"):
        check_identifier(prior.tokenizer, card.get("identifier", ""))
    parameters = dict(prior.unet.named_parameters())
    text = {name: tensors.pop(name) for name in ("identifier", "subject") if name in tensors}
    try:
        changes = _changes(tensors, float(card.get("scale", 1)))
        fits = all(parameters[name].shape == value.shape for name, value in changes.items())
        fits &= text["identifier"].shape == token_embedding(prior.text_encoder).weight.shape[1:]
        if "subject" in text:
            fits &= prior.has_code and text["subject"].shape == (prior.max_tokens + 1, prior.text_shape[1])
        fits &= all(bool(torch.isfinite(value).all()) for value in (*changes.values(), *text.values()))
    except (KeyError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise ConfigError(f"{path} is damaged: its tensors are not those of its kind; make it again", "personalisation")
    with torch.no_grad():
        for name, value in changes.items():
            parameters[name].add_(strength * value.to(parameters[name].device))
    add_word(prior.tokenizer, prior.text_encoder, card["identifier"], text["identifier"])
    if prior.coarse is not None and "subject" in text:
        prior.coarse.set_subject(text["subject"])


def _changes(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    # the change of each UNet parameter, float32; `scale` multiplies the products of LoRA matrices
    changes = {}
    for name, value in tensors.items():
        inner = name.removeprefix("unet.")
        if inner.endswith(A):
            inner = inner.removesuffix(A)
            changes[inner] = scale * tensors[f"unet.{inner}{B}"].float() @ value.float()
        elif inner.endswith(B):
            tensors[name.removesuffix(B) + A]  # raises KeyError if lora_A is missing
        else:
            changes[inner] = value.float()
    return changes
