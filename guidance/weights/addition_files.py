"""Find files that are added to the weights of a prior: LoRAs, textual inversions, subjects; imports no torch."""

from pathlib import Path

from threedgen.config import ConfigError
from threedgen.config.errors import errors_default_to_key, errors_name_key, short

from . import hub
from .files import read_card, read_header, weight_format
from .loading import PEFT_CONFIG, PEFT_STEM, existing_path

SUBJECT_FORMAT = "threedgen personalisation 1"
ADDITIONS = ("pytorch_lora_weights", PEFT_STEM, "learned_embeds")
"""File names, without suffix, of a LoRA or textual inversion in a folder of diffusers or peft."""
FIRST_KEYS = ("clip_l", "text_encoders_0")
"""Tensor names, in textual inversions of SDXL, of the vectors for the first text encoder."""
UNNAMED = ("emb_params", *FIRST_KEYS)  # names of tensors in textual inversions that are not the word itself


def hub_place(name: str) -> tuple[str, str] | None:
    """Return (hub repository, file) if `name` has the form "owner/name/FILE" and is no existing path, else None.

    FILE must have the suffix of a weight file, such as .safetensors.
    """
    repo, _, file = name.rpartition("/")
    on_hub = hub.is_hub_id(repo) and file.endswith(hub.WEIGHT_SUFFIXES) and existing_path(name) is None
    return (repo, file) if on_hub else None


def hub_files(name: str) -> list[tuple[str, str]]:
    """Return (hub repository, file) for each file of additional weights `name` of the hub; [] for a path.

    The last one is the file `name` itself. A LoRA of peft also needs the config with its alpha, which is downloaded
    first, so that both files have the newest revision.
    """
    if (place := hub_place(name)) is None:
        return []
    repo, file = place
    return [(repo, PEFT_CONFIG), place] if Path(file).stem == PEFT_STEM else [place]


def weight_file(name: str) -> Path:
    """Return the path of a file of additional weights, such as a LoRA. Raises ConfigError if it is missing.

    `name` is a file, a folder that diffusers or peft wrote, or "owner/name/FILE" on the hub, which is downloaded.
    """
    with errors_name_key("file"):
        path = [hub.hub_file(*place) for place in places][-1] if (places := hub_files(name)) else existing_path(name)
    if path is None:
        raise ConfigError(f"there is no file {short(name, 300)}; give a path, or owner/name/FILE of the hub", "file")
    names = [f"{stem}{suffix}" for stem in ADDITIONS for suffix in hub.WEIGHT_SUFFIXES] if path.is_dir() else []
    path = next((path / name for name in names if (path / name).is_file()), path)
    weight_format(path)
    return path


def check_weight_file(name: str) -> None:
    """Raise ConfigError if the file `name` of additional weights, such as a LoRA, is missing; download nothing.

    `name` is a path, or "owner/name/FILE" on the hub. If a file on the hub is not cached, it counts as missing when the
    hub cannot be reached, and as present otherwise.
    """
    if all(hub.cached(*place) is not None for place in hub_files(name)) or not hub.reachable():
        weight_file(name)


def embedding_word(path: Path) -> str:
    """Return the word of the textual inversion in the file `path`: its tensor's name (diffusers), else the file name.

    The file name is taken without suffix, with "_" instead of spaces.
    """
    names = read_header(path)[0]
    return names[0] if len(names) == 1 and names[0] not in UNNAMED else path.stem.replace(" ", "_")


def subject_card(path: Path | str) -> dict[str, str]:
    """Return the metadata of a safetensors file with the changes that DreamBooth made to a prior.

    They include "identifier" (word of the subject), "prompt", "kind" ("difference" or "lora") and "base" (checksum of
    the weights before the changes). No tensor is read. Raises ConfigError if the file is missing or has another format.
    """
    source = "an mvdreambooth run leaves one behind, RUN/personalisation.safetensors"
    with errors_default_to_key("personalisation"), errors_name_key("personalisation"):
        found = existing_path(str(path))
        if found is None:
            raise ConfigError(f"there is no file {short(str(path))}; {source}")
        card = read_card(found, SUBJECT_FORMAT)
        if not card:
            raise ConfigError(f"{found} is not of the format {SUBJECT_FORMAT!r}; {source}")
    return card
