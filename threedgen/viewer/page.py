"""Make self-contained HTML pages from templates. Styles, scripts and data are inline, so a page sends no requests.

Three independent measures protect against injected code. The templates escape every value. The page's content security
policy allows only scripts and styles with the hashes of ours. The policy allows only `data:` URIs for other content.
"""

import base64
import hashlib
import io
from functools import cache
from pathlib import Path
from posixpath import basename
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL.Image import Image
from rich.filesize import decimal as size

from threedgen.run.text import duration, number, visible

ASSETS = Path(__file__).parent / "assets"
MAX_EMBEDDED_BYTES = 64_000_000
"""Maximum size in bytes of a file that is embedded in a page. Browsers fail to load larger ones."""
SERVER_POLICY = "img-src data: 'self'; connect-src 'self'; frame-src 'self'"
_TYPES = {".glb": "model/gltf-binary", ".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg"}


@cache
def _environment() -> Environment:
    """Return the Jinja environment. It escapes values, makes control characters visible and rejects undefined names."""
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


def page(template: str, scripts: tuple[str, ...], served: bool = False, **values: object) -> str:
    """Render a template as a whole page, with page.css and the scripts inline. Returns the HTML.

    `template` and `scripts` are file names in `assets/`; `values` are the template's variables. `served` allows
    requests to the server that delivers the page.
    """
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in scripts)
    policy = (
        f"default-src 'none'; {SERVER_POLICY if served else 'img-src data:'}; media-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    fixed = {"policy": policy, "style": Markup(style), "script": Markup(script)}
    return fragment(template, **fixed, **values)


def fragment(template: str, **values: object) -> str:
    """Render a template of `assets/` as a part of a page; `values` are the template's variables. Returns the HTML."""
    return _environment().get_template(template).render(**values)


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the SHA-256 hash of an inline script or style in the form of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def data_uri(data: bytes, suffix: str) -> Markup:
    """Encode the content of a file as a data URI. The file name's `suffix`, such as .png, determines the media type."""
    kind = _TYPES.get(suffix, "application/octet-stream")
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}")


def jpeg(image: Image) -> Markup:
    """Encode an image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), ".jpg")


def embedded(path: Path | None) -> Markup | None:
    """Encode a file as a data URI; return None if `path` is None or the file exceeds MAX_EMBEDDED_BYTES."""
    if path is None or path.stat().st_size > MAX_EMBEDDED_BYTES:
        return None
    return data_uri(path.read_bytes(), path.suffix)


def link(path: Path | str) -> str:
    """Return a relative path as a percent-encoded relative URL."""
    return "./" + quote(Path(path).as_posix(), errors="surrogateescape")
