"""Write OBJ, MTL and textures into one zip file, so that they stay together."""

import io
import zipfile

import numpy as np

from threedgen.export.files.glb import to_gltf_axes
from threedgen.export.files.textured import TexturedMesh

_DATE = (1980, 1, 1, 0, 0, 0)  # fixed date, so that equal content gives equal bytes


def obj_zip(levels: dict[str, TexturedMesh], pngs: dict[str, bytes], name: str = "mesh") -> bytes:
    """Return the bytes of a zip with NAME.obj, NAME.mtl and textures. Axes are those of the GLB: y up, front +z.

    Args:
        levels: name -> mesh of each level of detail, finest first, in world axes. Each level becomes an OBJ object.
        pngs: texture name (base_colour, normal, orm) -> PNG file.
        name: NAME of the files and of the material.
    """
    lines = [f"mtllib {name}.mtl"]
    first = 1
    for level, mesh in levels.items():
        lines += [f"o {level}", f"usemtl {name}"]
        lines += _rows("v", to_gltf_axes(mesh.vertices))
        lines += _rows("vt", mesh.uv)
        lines += _rows("vn", to_gltf_axes(mesh.normals))
        lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in face) for face in (mesh.faces + first).tolist()]
        first += len(mesh.vertices)
    files = {f"{name}.obj": "\n".join(lines).encode() + b"\n", f"{name}.mtl": _mtl(name, pngs).encode()}
    files |= {f"{name}_{kind}.png": data for kind, data in pngs.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if path.endswith(".png") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def _rows(key: str, values: np.ndarray) -> list[str]:
    return [f"{key} " + " ".join(f"{x:.7g}" for x in row) for row in values.tolist()]


def _mtl(name: str, pngs: dict[str, bytes]) -> str:
    """Return the text of an MTL file with standard and PBR keys. MTL has no key for occlusion, so it is left out."""
    lines = [f"newmtl {name}", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1", f"map_Kd {name}_base_colour.png"]
    if "normal" in pngs:
        lines += [f"map_Bump {name}_normal.png", f"norm {name}_normal.png"]
    return "\n".join([*lines, "Pr 1", "Pm 0"]) + "\n"
