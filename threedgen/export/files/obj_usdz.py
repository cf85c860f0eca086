"""Write assets as a zip of OBJ, MTL and textures, and as USDZ."""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.export.files.glb import to_gltf_axes
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.geometry.image_file import load_image
from threedgen.run.arrays import Array

_DATE = (1980, 1, 1, 0, 0, 0)  # fixed date, so that equal content gives equal bytes


def obj_zip(levels: dict[str, TexturedMesh], pngs: dict[str, bytes], name: str = "mesh") -> bytes:
    """Return the bytes of a zip with OBJ files, their MTL file and PNG textures, y up and front +z as in the GLB.

    Each level of detail is an OBJ file of its own, since programs show all objects of a file at once. MTL has no key
    for ambient occlusion, so the material does not use it.

    Args:
        levels: name of a level of detail -> its mesh, in world axes (z up, front +x). The name is also the name of the
            OBJ file, without suffix.
        pngs: texture name (base_colour, normal, orm: occlusion, roughness, metallic) -> bytes of a PNG file.
        name: name of the material and the MTL file, and prefix of the names of the textures.
    """
    texts = dict[str, list[str]]()
    for level, mesh in levels.items():
        lines = texts[f"{level}.obj"] = [f"mtllib {name}.mtl", f"o {level}", f"usemtl {name}"]
        lines += _rows("v", to_gltf_axes(mesh.vertices))
        lines += _rows("vt", mesh.uv)
        lines += _rows("vn", to_gltf_axes(mesh.normals))
        lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in face) for face in (mesh.faces + 1).tolist()]
    material = [f"newmtl {name}", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1", f"map_Kd {name}_base_colour.png"]
    if "normal" in pngs:
        material += [f"map_Bump {name}_normal.png", f"norm {name}_normal.png"]
    roughness, metallic = 1.0, 0.0
    if "orm" in pngs:  # one value for the whole surface, as a field does not define them
        orm = np.asarray(load_image(pngs["orm"], "orm"))
        roughness, metallic = (float(x) / 255 for x in np.median(orm[..., 1:3], axis=(0, 1)))
    material += [f"Pr {roughness:.3g}", f"Pm {metallic:.3g}"]
    texts[f"{name}.mtl"] = material
    files = {file: "\n".join([*text, ""]).encode() for file, text in texts.items()}
    files |= {f"{name}_{kind}.png": data for kind, data in pngs.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if path.endswith(".png") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def _rows(key: str, values: Array) -> list[str]:
    return [f"{key} " + " ".join(f"{x:.7g}" for x in row) for row in values.tolist()]


def usdz_bytes(mesh: TexturedMesh, pngs: dict[str, bytes], name: str = "mesh") -> bytes:
    """Return the bytes of a USDZ package with a mesh and a UsdPreviewSurface material, in metres, y up, front +z.

    The function needs the optional dependencies of threedgen's extra `usd`.

    Args:
        mesh: mesh in world axes (z up, front +x), in metres.
        pngs: texture name -> bytes of a PNG file, for base_colour, normal and orm (occlusion, roughness, metallic).
        name: name of the root prim. Characters that USD does not allow become `_`.

    Raises:
        ConfigError: if USD cannot write the package.
    """
    from pxr import Gf, Kind, Sdf, Usd, UsdGeom, UsdShade, UsdUtils, Vt

    prim = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
    prim = prim if prim[:1].isalpha() else f"_{prim}"
    with tempfile.TemporaryDirectory() as folder:
        for kind, data in pngs.items():
            (Path(folder) / f"{kind}.png").write_bytes(data)
        layer = Path(folder) / "mesh.usdc"
        stage = Usd.Stage.CreateNew(str(layer))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        root = UsdGeom.Xform.Define(stage, f"/{prim}")
        Usd.ModelAPI(root).SetKind(Kind.Tokens.component)
        stage.SetDefaultPrim(root.GetPrim())
        body = UsdGeom.Mesh.Define(stage, f"/{prim}/mesh")
        points = to_gltf_axes(mesh.vertices)
        body.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
        body.CreateFaceVertexCountsAttr([3] * len(mesh.faces))
        body.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.reshape(-1)))
        # Blender ignores normals of vertices
        body.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(to_gltf_axes(mesh.normals)[mesh.faces.reshape(-1)]))
        body.SetNormalsInterpolation(UsdGeom.Tokens.faceVarying)
        body.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        body.CreateExtentAttr([Gf.Vec3f(*points.min(axis=0).tolist()), Gf.Vec3f(*points.max(axis=0).tolist())])
        st = UsdGeom.PrimvarsAPI(body).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex)
        st.Set(Vt.Vec2fArray.FromNumpy(mesh.uv))
        UsdShade.MaterialBindingAPI.Apply(body.GetPrim()).Bind(_material(stage, f"/{prim}/material"))
        stage.GetRootLayer().Save()
        package = Path(folder) / "mesh.usdz"
        if not UsdUtils.CreateNewUsdzPackage(str(layer), str(package)):
            raise ConfigError("the usdz package could not be written; remove usdz", "formats")
        return package.read_bytes()


def _material(stage: Any, path: str) -> Any:
    from pxr import Gf, Sdf, UsdShade

    types = Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, path)
    surface = UsdShade.Shader.Define(stage, f"{path}/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    reader = UsdShade.Shader.Define(stage, f"{path}/st")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", types.String).Set("st")

    def texture(kind: str, space: str) -> Any:
        shader = UsdShade.Shader.Define(stage, f"{path}/{kind}")
        shader.CreateIdAttr("UsdUVTexture")
        # "./" means beside the layer; for a bare name the packager searches elsewhere and warns
        shader.CreateInput("file", types.Asset).Set(Sdf.AssetPath(f"./{kind}.png"))
        shader.CreateInput("sourceColorSpace", types.Token).Set(space)
        shader.CreateInput("st", types.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        for wrap in ("wrapS", "wrapT"):
            shader.CreateInput(wrap, types.Token).Set("clamp")
        return shader

    colour, normal, orm = texture("base_colour", "sRGB"), texture("normal", "raw"), texture("orm", "raw")
    normal.CreateInput("scale", types.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
    normal.CreateInput("bias", types.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
    surface.CreateInput("diffuseColor", types.Color3f).ConnectToSource(colour.ConnectableAPI(), "rgb")
    surface.CreateInput("normal", types.Normal3f).ConnectToSource(normal.ConnectableAPI(), "rgb")
    for channel, name in (("r", "occlusion"), ("g", "roughness"), ("b", "metallic")):
        surface.CreateInput(name, types.Float).ConnectToSource(orm.ConnectableAPI(), channel)
    return material
