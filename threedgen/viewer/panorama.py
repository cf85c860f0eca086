"""The page of a panorama, panorama.html: one stands inside it and looks around."""

from __future__ import annotations

from pathlib import Path

from threedgen.config.errors import ConfigError
from threedgen.run.folder import write_atomic

from .page import LARGEST, embedded, page


def write_page(path: Path, picture: Path, title: str) -> None:
    """Writes the page of an equirectangular picture that goes all around, with the horizon in its middle and as many
    degrees to a row as to a column. Raises OSError, and ConfigError for a picture that is too large for a page."""
    data = embedded(picture)
    if data is None:
        raise ConfigError(f"{picture} is too large for a page: more than {LARGEST:,} bytes; take a smaller height=")
    write_atomic(path, page("panorama.html", ("panorama.js",), title=title, picture=data, name=picture.name))
