"""Project images onto a mesh: a texel gets the weighted mean of the images that show it. Also render textured meshes.

An image shows a texel if the mesh does not occlude the texel and the visible side of its face points to the camera.
Pixels next to a depth edge may show another surface, so their weight is small or zero (`blend.BlendOptions`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.export.shape.mesh import TexturedMesh, vertex_normals
from threedgen.export.shape.topology import area_vectors, weld
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import psnr_of_error
from threedgen.geometry.raster import Buffers, box_downsample, interpolate, rasterise_uv, rasterise_views, unit
from threedgen.geometry.texture import fill, sample
from threedgen.run.arrays import Array

from .blend import SCENE_BLEND, BlendOptions, WeightedMean
from .unseen import diffuse_colours, texel_pieces

MIN_DEPTH_ROWS, MAX_DEPTH_SCALE = 384, 8
"""Minimum number of rows of the depth map for occlusion, and maximum ratio of its size to the image size.

The ratio is at least 2, and larger for small images.
"""
MAX_BACK = 4  # maximum ratio of the pixels that show the back and the front of a face whose front is its visible side
BORDER_WEIGHT = 1e-3  # minimum of the weight factors of the options `window` (per axis) and `feather`


class ViewTexture(NamedTuple):
    """Texture that `texture_from_views` projected from images, and how well the images determine it.

    Attributes:
        texture: (H, W, 3) in [0, 1], row 0 at v = 1.
        visible: (H, W) bool, the texels that an image shows. If `texture_from_views` got an earlier texture `over`, its
            visible texels are included.
        share: fraction of visible texels among those that a face covers.
        psnr: PSNR in dB between images and texture, from the mean squared error over all pairs of an image and a texel
            that it shows; 0 if there is no such pair.
    """

    texture: Array  # (H, W, 3) float32 in [0, 1], row 0 at v = 1
    visible: Array  # (H, W) bool, texels that an image shows, or that are visible in the earlier texture `over`
    share: float  # fraction of the covered texels that are visible
    psnr: float  # PSNR of texture and image pixels, dB; 0 if no image is used


class TexelGeometry(NamedTuple):
    """Positions and unit normals of the N texels that the faces of a mesh cover, for the projection of images onto it.

    The normals of a face point to its visible side. This is the front, as the order of its vertices gives it, except
    for faces whose back is shown by more than four times as many pixels (MAX_BACK).

    Attributes:
        points: (N, 3) positions in world units.
        normals: (N, 3) unit normals of the faces.
        smooth: (N, 3) unit normals interpolated from the vertices; for doubled faces, those of the faces.
        two_sided: (N,) bool, True for texels of faces that no image shows, and that are not doubled. Both their sides
            count as visible.
    """

    points: Array  # (N, 3), world units
    normals: Array  # (N, 3), unit face normals
    smooth: Array  # (N, 3), unit interpolated vertex normals
    two_sided: Array  # (N,) bool, texels of faces of which no camera sees a side


def texture_from_views(
    mesh: TexturedMesh,
    size: int,
    at: Cameras,
    images: Array,
    options: BlendOptions = SCENE_BLEND,
    *,
    masks: Array | None = None,
    over: ViewTexture | None = None,
    on_view: Callable[[], None] = lambda: None,
) -> ViewTexture:
    """Project images onto a mesh and blend them to a texture. Return it with its mask of visible texels.

    The result also has the PSNR between the pixels of the images and the texels that they show. Texels that no image
    shows get colours interpolated over the surface. Raises ConfigError if no texel is visible in an image or in the
    earlier texture `over`.

    Args:
        mesh: mesh with UVs.
        size: edge of the square texture in texels.
        at: the N cameras of the images, perspective or orthographic, with h x w pixels.
        images: (N, h, w, 3) in [0, 1].
        options: rules that decide which images colour a texel, and with which weights.
        masks: (N, h, w) opacity of the mesh in [0, 1]; None: 1 everywhere.
        over: earlier texture of the same size, whose visible texels are used where no new image shows the texel; None:
            no earlier texture.
        on_view: callback for the progress, called twice per image.
    """
    buffers = rasterise_uv(mesh.uv, mesh.faces, size)
    normals = unit(area_vectors(mesh.vertices, mesh.faces))
    depths, side_pixels = render_depths(mesh, normals, at, on_view)
    texels = texel_geometry(mesh, buffers, normals, side_pixels)
    mean, count = WeightedMean(len(texels.points)), np.zeros((len(texels.points), 1), np.int32)
    colour_sum, square_sum = np.zeros(texels.points.shape), 0.0  # float64; the samples themselves need too much memory
    for n, depth in enumerate(depths):
        index, weight, pixels = _weights(texels, at, n, depth, options, None if masks is None else masks[n])
        colours = sample(images[n], _image_uv(pixels, at))
        mean.add(colours, weight, index)
        count[index] += 1
        colour_sum[index] += colours
        square_sum += float(np.square(colours, dtype=np.float64).sum())
        on_view()
    before = np.zeros_like(texels.points) if over is None else over.texture[buffers.mask]
    known = mean.known if over is None else mean.known | over.visible[buffers.mask]
    if not known.any():
        raise ConfigError("no image shows the mesh; check cameras and images")
    colours = mean.mean_or(before, min_weight=1e-30)
    if not known.all():
        colours = diffuse_colours(texels.points, texels.smooth, texel_pieces(mesh, buffers), colours, known)
    texture, visible = np.zeros((size, size, 3), np.float32), np.zeros((size, size), bool)
    texture[buffers.mask], visible[buffers.mask] = colours, known
    error = square_sum + float(((count * colours - 2 * colour_sum) * colours).sum())  # over all samples
    similarity = psnr_of_error(error / (3 * float(count.sum()))) if count.any() else 0.0
    return ViewTexture(np.clip(fill(texture, buffers.mask), 0, 1), visible, float(known.mean()), similarity)


def texel_geometry(mesh: TexturedMesh, buffers: Buffers, normals: Array, side_pixels: Array) -> TexelGeometry:
    """Return positions (in world units) and unit normals of the texels that lie in the UV triangle of some face.

    The texels are in row-major order, and the first row is at v = 1. Where practically only the back of a face is
    visible, its normals are reversed. Doubled faces keep them: they have a copy with the opposite orientation, which is
    what the cameras see from behind.

    Args:
        buffers: for each texel, the face that covers it and the barycentric coordinates in this face (`rasterise_uv`).
        normals: unit normals (F, 3) of the F faces, as the order of their vertices gives them.
        side_pixels: (2, F) from `render_depths`: number of pixels that show the front, and the back, of each face.
    """
    face = buffers.face[buffers.mask]
    front, back = side_pixels
    vertices, faces, index = weld(mesh.vertices, mesh.faces)
    _, group, copies = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    winding = np.sign(np.diff(faces, axis=1, append=faces[:, :1])).prod(1)
    doubled = (np.abs(np.bincount(group.ravel(), winding)) < copies)[group.ravel()]
    outwards = np.where((back > MAX_BACK * front) & ~doubled, -1, 1)
    normals = (normals * outwards[:, None])[face].astype(np.float32)
    oriented = np.where(outwards[:, None] < 0, faces[:, ::-1], faces)
    smooth = interpolate(vertex_normals(vertices, oriented)[index], mesh.faces, buffers)[buffers.mask]
    return TexelGeometry(
        points=interpolate(mesh.vertices, mesh.faces, buffers)[buffers.mask],
        normals=normals,
        smooth=np.where(doubled[face, None], normals, unit(smooth)),  # those of copies cancel out
        two_sided=((front + back == 0) & ~doubled)[face],
    )


def render_depths(
    mesh: TexturedMesh, normals: Array, at: Cameras, on_view: Callable[[], None]
) -> tuple[list[Array], Array]:
    """Render a depth map (H, W) for each camera, and count the pixels that show the front or the back of each face.

    Returns the depth maps, and an array (2, F): for each face, the number of pixels that show its front, and the number
    that show its back. The unit `normals` (F, 3) point to the front. Depth is along the viewing axis in world units,
    inf for background. A depth map has the size of the camera's image times the smallest integer from 2 to 8 that
    gives at least 384 rows (MIN_DEPTH_ROWS), or 8 if none does. `on_view` is a callback for the progress, called once
    per camera.
    """
    scale = min(max(2, -(-MIN_DEPTH_ROWS // at.height)), MAX_DEPTH_SCALE)
    corner = mesh.vertices[mesh.faces[:, 0]]
    depths, side_pixels = list[Array](), np.zeros((2, len(mesh.faces)), np.int64)
    fine = at.with_size(at.height * scale, at.width * scale)
    for n in range(len(fine)):
        camera = fine.select([n])
        buffers = rasterise_views(mesh.vertices, mesh.faces, camera)
        depths.append(buffers.z[0])
        count = np.bincount(buffers.face[buffers.mask], minlength=len(mesh.faces))
        toward = camera.c2w[0, :3, 2].numpy() if at.projection.parallel else camera.position[0].numpy() - corner
        outside = (toward * normals).sum(1) > 0
        side_pixels += count * np.stack([outside, ~outside])
        on_view()
    return depths, side_pixels


def _weights(
    texels: TexelGeometry, at: Cameras, n: int, depth: Array, options: BlendOptions, mask: Array | None
) -> tuple[Array, Array, Array]:
    """Find the M texels that image n shows: they lie inside it, and their weight by `options` is above 0.

    Returns their indices in `texels` (M,), the blending weights of their colours in image n (M,), and their positions
    (x, y) in image n in pixels (M, 2).

    Args:
        texels: positions and normals of all texels that a face covers.
        at: cameras of all images, with h x w pixels.
        n: index of the image and of its camera in `at`.
        depth: (H, W) depth map of camera n from `render_depths`. It is finer than the image: H and W are h and w times
            the same integer.
        options: rules that hide texels, such as those behind another surface, and weight the others.
        mask: (h, w) opacity of the mesh in image n, in [0, 1]; texels where it is at most `options.opacity` are hidden.
    """
    c2w, K, size = at.c2w[n].double().numpy(), at.projection.K[n].numpy(), np.array([at.width, at.height])
    w2c = (c2w[:3, :3] * (1, -1, -1)).astype(np.float32)
    local = (texels.points - c2w[:3, 3].astype(np.float32)) @ w2c
    index = np.flatnonzero(local[:, 2] > 1e-2)
    local = local[index]
    pixels = (local[:, :2] if at.projection.parallel else local[:, :2] / local[:, 2:]) @ K[:2, :2].T + K[:2, 2]
    inside = ((pixels > 0) & (pixels < size)).all(1)
    index, local, pixels = index[inside], local[inside], pixels[inside]
    if at.projection.parallel:
        toward, near = np.array([[0, 0, -1]], np.float32), np.float32(1)
    else:
        near = 1 / np.maximum(np.linalg.norm(local, axis=1), 1e-9)
        toward = -local * near[:, None]
    cosine, smooth = (((part[index] @ w2c) * toward).sum(1) for part in (texels.normals, texels.smooth))
    two_sided = texels.two_sided[index]
    cosine, smooth = np.where(two_sided, np.abs(cosine), cosine), np.where(two_sided, np.abs(smooth), smooth)
    fine = depth.shape[0] // at.height
    column, row = (pixels * fine).astype(np.int32).clip(0, np.array(depth.shape[::-1]) - 1).T
    farthest = _farthest(depth, options.jump, at.projection.parallel)[row, column]
    error = local[:, 2] - farthest if at.projection.parallel else local[:, 2] / np.maximum(farthest, 1e-9) - 1
    jumps = _jumps(depth, fine * options.margin, at.projection.parallel)
    jump = jumps[row, column]
    opacity = None if mask is None else sample(mask[..., None], _image_uv(pixels, at))[:, 0]
    visible = options.valid(error, cosine, jump, opacity)
    weight = options.weight(np.maximum(smooth, options.cosine) * near, visible)
    weight = weight * np.where(jump < options.jump, 1.0, options.beside_edge)
    if options.feather and (edge := jumps >= options.jump).any():  # rise with the distance to the nearest depth edge
        ramp = ndimage.distance_transform_edt(~edge) / (options.feather * depth.shape[0])
        weight = weight * np.clip(ramp, BORDER_WEIGHT, 1)[row, column]
    if options.window:
        weight = weight * np.maximum(1 - np.abs(2 * pixels / size - 1), BORDER_WEIGHT).prod(1)
    visible = weight > 0
    return index[visible], weight[visible].astype(np.float32), pixels[visible]


def _image_uv(pixels: Array, at: Cameras) -> Array:
    return pixels / (at.width, -at.height) + (0, 1)


def _farthest(depth: Array, jump: float, parallel: bool) -> Array:
    # The largest depth of each pixel and its 8 neighbours, so that slopes do not occlude themselves. A pixel next to a
    # depth step larger than `jump` keeps its own depth.
    known = np.where(np.isfinite(depth), depth, 0)
    around = ndimage.maximum_filter(known, 3)
    return np.where(around - known <= 2 * jump * (1 if parallel else known), around, known)


def _jumps(depth: Array, reach: int, parallel: bool) -> Array:
    # Largest deviation (H, W) of the depth map from a plane within `reach` pixels. It is in world units for
    # orthographic cameras, else a fraction of the depth. In perspective, 1 / depth is linear.
    valid = np.isfinite(depth)
    if parallel:
        linear = np.where(valid, depth, 2 * np.max(depth, where=valid, initial=1))
    else:
        linear = np.where(valid, 1 / np.maximum(depth, 1e-6), 0)
    curvature = np.zeros(depth.shape, np.float32)
    for axis in (0, 1):
        rows = np.moveaxis(linear, axis, 0)
        curve = np.abs(rows[2:] - 2 * rows[1:-1] + rows[:-2])
        curve = curve if parallel else curve / np.maximum(rows[1:-1], 1e-6)
        part = np.moveaxis(curvature, axis, 0)[1:-1]
        np.maximum(part, curve, out=part)
    return ndimage.maximum_filter(curvature, 2 * reach + 1)


def render(mesh: TexturedMesh, texture: Array, at: Cameras, supersample: int = 2, background: float = 0.5) -> Array:
    """Render a textured mesh, unlit and double-sided; return images (N, h, w, C) for N cameras of h x w pixels.

    The texture (H, W, C) has row 0 at v = 1. Each pixel is the mean of supersample^2 samples. `background` is the value
    of all channels behind the mesh.
    """
    size, images = (at.height * supersample, at.width * supersample), list[Array]()
    fine = at.with_size(*size)
    for n in range(len(fine)):
        buffers = rasterise_views(mesh.vertices, mesh.faces, fine.select([n]))
        image = np.full((*size, texture.shape[-1]), background, np.float32)
        uv = interpolate(mesh.uv, mesh.faces, buffers)[0]
        image[buffers.mask[0]] = sample(texture, uv[buffers.mask[0]])
        images.append(box_downsample(image[None], supersample)[0])
    return np.stack(images)
