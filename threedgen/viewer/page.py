"""Make self-contained HTML pages from templates. Styles, scripts and data are inline, so a page sends no requests.

Three independent measures protect against injected code. The templates escape every value. The content security policy
of a page allows only scripts and styles with the hashes of our own. It allows only `data:` URIs for other content.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from posixpath import basename
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from rich.filesize import decimal as size

from threedgen.run.disk import Tree, write_atomic
from threedgen.run.text import duration, number, visible

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = "glb.js canvas.js scene.js splats.js gestures.js viewer.js frames.js".split()  # for pages with a 3D view
MAX_EMBEDDED_BYTES = 64_000_000  # maximum size of a file in a page; browsers fail to load larger ones
_TYPES = {".glb": "model/gltf-binary", ".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg"}
Row = tuple[str, str, Sequence[tuple[str, str]]]
"""Row of images on a page: title, description, and a pair (file name, caption) per image. The files are in the folder
of the page."""


@cache
def _environment() -> Environment:
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


def page(template: str, scripts: Sequence[str], served: bool = False, **values: object) -> str:
    """Render a template in `assets/` as a complete HTML page, with the style sheet and scripts inline; return the HTML.

    Args:
        template: file name of the template in `assets/`.
        scripts: file names of JavaScript files in `assets/`.
        served: allow the page to send requests to its own server. Otherwise it sends no requests.
        values: variables of the template.
    """
    style, *texts = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", *scripts))
    script = "\n".join(texts)
    sources = "img-src data: 'self'; connect-src 'self'; frame-src 'self'" if served else "img-src data:"
    policy = (
        f"default-src 'none'; {sources}; media-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    values |= {"policy": policy, "style": Markup(style), "script": Markup(script)}
    return _environment().get_template(template).render(values)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def data_uri(data: bytes, suffix: str) -> Markup:
    """Encode the content of a file as a data URI, for HTML. `suffix`, such as ".png", determines the media type."""
    kind = _TYPES.get(suffix, "application/octet-stream")
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}")


def jpeg(image: Image.Image) -> bytes:
    """Encode an image as JPEG; return the content of the file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def embedded(path: Path | None) -> Markup | None:
    """Return a file as a data URI, for HTML; None if `path` is None or the file is larger than MAX_EMBEDDED_BYTES."""
    if path is None or path.stat().st_size > MAX_EMBEDDED_BYTES:
        return None
    return data_uri(path.read_bytes(), path.suffix)


def asset_variables(folder: Path, mesh: Path | None, splats: Path | None = None) -> Tree:
    """Return the variables of the template asset.html, a 3D view of GLB files below `folder`.

    `mesh` and `splats` are the paths of a mesh and of 3D Gaussians; None if there is no such file. The variables
    "model" and "splats" are the two files as data URIs; None if a file is missing or above MAX_EMBEDDED_BYTES (64 MB).
    The variables "model_file" and "splats_file" are their paths relative to `folder`; None if a file is missing.
    """
    files = {"model": mesh, "splats": splats}
    names = {f"{key}_file": path and path.relative_to(folder).as_posix() for key, path in files.items()}
    return names | {key: embedded(path) for key, path in files.items()}


def link(path: Path | str) -> str:
    """Return a relative path as a percent-encoded relative URL."""
    return "./" + quote(Path(path).as_posix(), errors="surrogateescape")


def write_panorama_page(path: Path, image_path: Path, title: str) -> None:
    """Write an HTML page with a 3D view from the centre of an equirectangular image.

    `path` is the path of the page. The page contains the image, as a JPEG if the file exceeds MAX_EMBEDDED_BYTES. The
    image must cover 360 degrees horizontally, with the horizon in the middle row and the same number of pixels per
    degree along both axes. Raises OSError if the image cannot be read or the page cannot be written.
    """
    data = embedded(image_path)
    if data is None:
        with Image.open(image_path) as image:
            data = data_uri(jpeg(image), ".jpg")
    scripts = ("canvas.js", "gestures.js", "panorama.js")
    write_atomic(path, page("panorama.html", scripts, title=title, picture=data, name=image_path.name))


def write_textured_page(
    path: Path, title: str, model: str, rows: Sequence[Row], headline: Sequence[str] = (), notes: Sequence[str] = ()
) -> None:
    """Write an HTML page with a 3D view of a GLB file and rows of images.

    Raises OSError if a file cannot be read or the page cannot be written.

    Args:
        path: path of the page.
        title: heading of the page.
        model: name of the GLB file, in the folder of the page.
        rows: rows (title, description, [(file name, caption), ...]) of images in the folder of the page. Missing images
            and images that exceed MAX_EMBEDDED_BYTES are left out.
        headline: texts for the line under the title.
        notes: remarks for the user, one sentence each.
    """
    sections = []
    for name, hint, images in rows:
        found = [(embedded(path.parent / file), label) for file, label in images if (path.parent / file).is_file()]
        if shown := [(uri, label) for uri, label in found if uri]:
            sections.append((name, hint, shown))
    values: Tree = {"title": title, "headline": headline, "notes": notes, "rows": sections}
    values |= asset_variables(path.parent, path.parent / model)
    write_atomic(path, page("textured.html", SCRIPTS, **values))
