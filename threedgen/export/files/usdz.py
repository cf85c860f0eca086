"""Write USDZ with Pixar's library, which the optional extra `usd` installs."""

import tempfile
from pathlib import Path
from typing import Any

from threedgen.config.errors import ConfigError
from threedgen.config.optional import require
from threedgen.export.files.glb import to_gltf_axes
from threedgen.export.files.textured import TexturedMesh


def usdz_bytes(mesh: TexturedMesh, pngs: dict[str, bytes], name: str = "mesh") -> bytes:
    """Return the bytes of a USDZ package with a mesh and a UsdPreviewSurface material, in metres, y up, front +z.

    `pngs`: texture name (base_colour, which is required, normal, orm) -> PNG file. In `name`, the name of the root
    prim, characters that USD does not allow become `_`. Raises ConfigError if the extra is not installed or the package
    cannot be written.
    """
    require("pxr", "formats: usdz", "remove usdz")
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
        body.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(to_gltf_axes(mesh.normals)))
        body.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
        body.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        body.CreateExtentAttr([Gf.Vec3f(*points.min(axis=0).tolist()), Gf.Vec3f(*points.max(axis=0).tolist())])
        st = UsdGeom.PrimvarsAPI(body).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex)
        st.Set(Vt.Vec2fArray.FromNumpy(mesh.uv))
        UsdShade.MaterialBindingAPI.Apply(body.GetPrim()).Bind(_material(stage, f"/{prim}/material", list(pngs)))
        stage.GetRootLayer().Save()
        package = Path(folder) / "mesh.usdz"
        if not UsdUtils.CreateNewUsdzPackage(str(layer), str(package)):
            raise ConfigError("the usdz package could not be written; remove usdz", "formats")
        return package.read_bytes()


def _material(stage: Any, path: str, kinds: list[str]) -> Any:
    """Define a UsdPreviewSurface at prim `path` that reads the textures in `kinds`; return the material."""
    from pxr import Gf, Sdf, UsdShade

    types = Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, path)
    surface = UsdShade.Shader.Define(stage, f"{path}/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("metallic", types.Float).Set(0.0)
    surface.CreateInput("roughness", types.Float).Set(1.0)
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

    colour = texture("base_colour", "sRGB")
    surface.CreateInput("diffuseColor", types.Color3f).ConnectToSource(colour.ConnectableAPI(), "rgb")
    if "normal" in kinds:
        normal = texture("normal", "raw")
        normal.CreateInput("scale", types.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
        normal.CreateInput("bias", types.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
        surface.CreateInput("normal", types.Normal3f).ConnectToSource(normal.ConnectableAPI(), "rgb")
    if "orm" in kinds:
        orm = texture("orm", "raw")
        for channel, name in (("r", "occlusion"), ("g", "roughness"), ("b", "metallic")):
            surface.CreateInput(name, types.Float).ConnectToSource(orm.ConnectableAPI(), channel)
    return material
