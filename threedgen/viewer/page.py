"""One HTML file that stands alone: templates, styles and scripts in, no request out.

Three walls, each enough on its own: the templates escape whatever is put into them; the page's policy runs and
styles nothing but the very texts below, known by their hashes; and it loads nothing but `data:`.
"""

from __future__ import annotations

import base64
import hashlib
import io
from functools import cache
from pathlib import Path
from posixpath import basename
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL.Image import Image
from rich.filesize import decimal as size

from threedgen.run.text import duration, number, visible

ASSETS = Path(__file__).parent / "assets"
LARGEST = 64_000_000
"""Bytes of a file that still goes into a page; browsers choke on more."""
REMEDY = "see to that and run the same command again"
"""What to do when a page could not be written."""
SERVED = "img-src data: 'self'; connect-src 'self'; frame-src 'self'"
_TYPES = {".glb": "model/gltf-binary", ".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg"}


@cache
def _environment() -> Environment:
    """Loads templates that make every value visible and escape it; a name that one misspells is an error."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"duration": duration, "number": number, "size": size, "link": link, "basename": basename}
    return environment


def page(template: str, scripts: tuple[str, ...], served: bool = False, **values: Any) -> str:
    """Fills in a template of `assets/`, with page.css and the scripts inside it.

    `served`: by a server of ours, which alone the page may ask for more.
    """
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in scripts)
    policy = (
        f"default-src 'none'; {SERVED if served else 'img-src data:'}; media-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    fixed = {"policy": policy, "style": Markup(style), "script": Markup(script)}
    return fragment(template, **fixed, **values)


def fragment(template: str, **values: Any) -> str:
    """Fills in a template of `assets/`, as a part of a page."""
    return _environment().get_template(template).render(**values)


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Names an inline text for a policy: by the hash of what stands between its tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def data_uri(data: bytes, suffix: str) -> Markup:
    """Encodes the content of a file as a data URI; its kind by the suffix of its name."""
    kind = _TYPES.get(suffix, "application/octet-stream")
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}")


def jpeg(picture: Image) -> Markup:
    """Encodes a picture as a JPEG within the page."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), ".jpg")


def embedded(path: Path | None) -> Markup | None:
    """Encodes a file as a data URI; None if it is not there or is too large for a page."""
    if path is None or path.stat().st_size > LARGEST:
        return None
    return data_uri(path.read_bytes(), path.suffix)


def link(path: Path | str) -> str:
    """Quotes a relative path as an address; none of its characters can mean anything but itself."""
    return "./" + quote(Path(path).as_posix(), errors="surrogateescape")
