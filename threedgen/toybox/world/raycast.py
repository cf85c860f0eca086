"""Ray caster for toybox assets (numba), which renders colour, mask, depth, normals and part labels.

Colours (sRGB) are multiplied by a shading factor that depends on the unit normal n of the surface, in world space with
z up. There are no shadows. Objects are lit from above and from the camera, so a colour looks nearly the same from every
azimuth: the factor is 0.5 + 0.2 n_z + 0.3 max(0, n . v), with the unit vector v to the camera. Rooms have a point light
at p, so a wall looks the same from every camera: the factor is 0.55 + 0.45 max(0, n . (p - x) / |p - x|) at the surface
point x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from .primitives import BOX, DOME, FRUSTUM, PRISM, SPHERE, Asset

BOX_PLANES = np.array([(1, 0, 0, 1), (-1, 0, 0, 1), (0, 1, 0, 1), (0, -1, 0, 1), (0, 0, 1, 1), (0, 0, -1, 1)], float)
PRISM_PLANES = np.array([(0, 0, -1, 1), (0, 1, 0, 1), (0, -1, 0, 1), (2, 0, 1, 1), (-2, 0, 1, 1)], float)
"""Half spaces n . x <= d whose intersection is a BOX or a PRISM in its local axes, as rows (n_x, n_y, n_z, d)."""


@dataclass(frozen=True)
class RenderResult:
    """Images of V views, and the geometry at the pixel centres (G-buffer).

    Attributes:
        rgb: (V, H, W, 3) in [0, 1].
        mask: (V, H, W), bool, False on the background.
        depth: (V, H, W), distance from the camera along the ray in world units, inf on the background.
        normal: (V, H, W, 3), unit normals in world space, 0 on the background.
        label: (V, H, W), int, 1 + index into ``Asset.labels``, 0 on the background.

    Without a G-buffer, ``mask``, ``depth``, ``normal`` and ``label`` have H = W = 0.
    """

    rgb: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    label: np.ndarray


def render(
    assets: Sequence[Asset],
    asset_index: np.ndarray,
    c2w: np.ndarray,
    fov: np.ndarray,
    size: int,
    background: np.ndarray | float = 0.5,
    supersample: int = 2,
    with_gbuffer: bool = False,
    lamp: np.ndarray | None = None,
    parallel: bool = False,
) -> RenderResult:
    """Render V square images of objects, one object per image, with perspective or orthographic cameras.

    Args:
        asset_index: (V,), index into ``assets`` of the object in each view.
        c2w: (V, 4, 4), camera-to-world, OpenGL axes.
        fov: (V,), vertical field of view in radians; with ``parallel`` half the visible height in world units.
        size: height (and width) of the images in pixels.
        background: grey value of the background in [0, 1], scalar or (V,).
        supersample: number of rays per pixel along each image axis, whose colours are averaged; 0: only the G-buffer
            is rendered, and ``rgb`` is black.
        with_gbuffer: also render mask, depth, normals and labels at the pixel centres.
        lamp: (V, 3), position of a point light for rooms; None: light from above and from the camera, for objects.
        parallel: use an orthographic projection.
    """
    arrays = [asset.arrays() for asset in assets]
    offsets = np.cumsum([0] + [len(a["kind"]) for a in arrays]).astype(np.int64)
    solids = tuple(np.concatenate(parts) for parts in zip(*(a.values() for a in arrays), strict=True))
    views = len(c2w)
    grey = np.broadcast_to(np.asarray(background, np.float32), (views,)).astype(np.float32)
    rgb = np.empty((views, size, size, 3), np.float32)
    shape = (views, size, size) if with_gbuffer else (views, 0, 0)
    depth = np.full(shape, np.inf, np.float32)
    normal = np.zeros((*shape, 3), np.float32)
    label = np.zeros(shape, np.int32)
    lamps = np.zeros((0, 3)) if lamp is None else np.broadcast_to(lamp, (views, 3))
    index, poses, lamps = np.asarray(asset_index, np.int64), np.asarray(c2w, np.float32), np.asarray(lamps, np.float32)
    flags = (parallel, supersample, with_gbuffer)
    _render(solids, offsets, index, poses, np.asarray(fov, np.float32), grey, lamps, *flags, rgb, depth, normal, label)
    return RenderResult(rgb, label > 0, depth, normal, label)


@njit(cache=True, inline="always")
def _cap(ox, oy, oz, dx, dy, dz, height, radius, best):
    if abs(dz) > 1e-12:
        t = (height - oz) / dz
        if 1e-4 < t < best:
            x, y = ox + t * dx, oy + t * dy
            if x * x + y * y <= radius * radius:
                return t
    return best


@njit(cache=True)
def _quadric(kind, k, ox, oy, oz, dx, dy, dz):
    # intersects a ray o + t d with a sphere, dome or frustum (top radius k) in local axes
    # returns t (inf on a miss) and a normal of any length
    best = np.inf
    nx, ny, nz = 0.0, 0.0, 0.0
    if kind == FRUSTUM:
        # rho = s z + m, from radius 1 at z = -1 to k at z = 1
        s, m = (k - 1.0) / 2, (k + 1.0) / 2
        a = dx * dx + dy * dy - s * s * dz * dz
        b = ox * dx + oy * dy - s * dz * (s * oz + m)
        c = ox * ox + oy * oy - (s * oz + m) ** 2
        low, high = -1.0, 1.0
    else:
        s, m = 0.0, 0.0
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        c = ox * ox + oy * oy + oz * oz - 1
        low, high = (0.0 if kind == DOME else -1.0), 1.0
    disc = b * b - a * c
    if disc > 0 and abs(a) > 1e-12:
        root = np.sqrt(disc)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            z = oz + t * dz
            if 1e-4 < t < best and low <= z <= high:
                best = t
                nx, ny = ox + t * dx, oy + t * dy
                nz = -s * (s * z + m) if kind == FRUSTUM else z
    if kind != SPHERE:
        t = _cap(ox, oy, oz, dx, dy, dz, low, 1.0, best)
        if t < best:
            best, nx, ny, nz = t, 0.0, 0.0, -1.0
        if kind == FRUSTUM and k > 0:
            t = _cap(ox, oy, oz, dx, dy, dz, 1.0, k, best)
            if t < best:
                best, nx, ny, nz = t, 0.0, 0.0, 1.0
    return best, nx, ny, nz


@njit(cache=True)
def _slabs(kind, ox, oy, oz, dx, dy, dz):
    # intersects a ray o + t d with a box or prism in local axes; returns t (inf on a miss) and a normal of any length
    near, far = -np.inf, np.inf
    nx, ny, nz = 0.0, 0.0, 0.0
    for px, py, pz, offset in BOX_PLANES if kind == BOX else PRISM_PLANES:
        rate = px * dx + py * dy + pz * dz
        gap = offset - (px * ox + py * oy + pz * oz)
        if abs(rate) < 1e-12:
            if gap < 0:
                return np.inf, 0.0, 0.0, 0.0
        elif rate < 0:
            t = gap / rate
            if t > near:
                near, nx, ny, nz = t, px, py, pz
        else:
            far = min(far, gap / rate)
    if near < far and near > 1e-4:
        return near, nx, ny, nz
    return np.inf, 0.0, 0.0, 0.0


@njit(cache=True)
def _ring(tube, ox, oy, oz, dx, dy, dz):
    # sphere tracing of a ray o + t d and a torus in local axes; returns t (inf on a miss) and a normal of any length
    length = np.sqrt(dx * dx + dy * dy + dz * dz)
    ux, uy, uz = dx / length, dy / length, dz / length
    b = ox * ux + oy * uy + oz * uz
    disc = b * b - (ox * ox + oy * oy + oz * oz - 1.0)
    if disc <= 0:
        return np.inf, 0.0, 0.0, 0.0
    t, far = max(-b - np.sqrt(disc), 0.0), -b + np.sqrt(disc)
    major = 1.0 - tube
    for _ in range(96):
        x, y, z = ox + t * ux, oy + t * uy, oz + t * uz
        rho = np.sqrt(x * x + y * y)
        gap = np.sqrt((rho - major) ** 2 + z * z) - tube
        if gap < 1e-4:
            f = (rho - major) / max(rho, 1e-9)
            return t / length, x * f, y * f, z
        t += gap
        if t > far:
            break
    return np.inf, 0.0, 0.0, 0.0


@njit(cache=True)
def _cull_row(centre, reach, start, stop, m, slope, half_pixel, parallel, candidates):
    """Write the indices of the solids that a pixel row can hit into the array ``candidates``; return their number.

    The rays through the pixel centres of the row lie in a plane. A solid counts if the ball that contains it is not
    wholly behind the camera, and meets this plane or misses it by at most about half a row.

    Args:
        centre, reach: solid i lies in the ball around ``centre[i]`` (3,) with the radius ``reach[i]``, world units.
        start, stop: only the solids with the indices ``start`` to ``stop`` - 1 are tested.
        m: camera-to-world matrix (4, 4), OpenGL axes.
        slope: position of the plane. For a perspective camera, it is the ratio up / forward of the camera coordinates
            of all points of the plane. For an orthographic camera, it is their up coordinate, in world units.
        half_pixel: slightly more than half the difference of ``slope`` between adjacent rows.
        parallel: whether the camera is orthographic.
        candidates: output, integers (``stop`` - ``start``,).
    """
    count = 0
    tilt = 1.0 / np.sqrt(1.0 + slope * slope)
    for i in range(start, stop):
        x, y, z = centre[i, 0] - m[0, 3], centre[i, 1] - m[1, 3], centre[i, 2] - m[2, 3]
        up = m[0, 1] * x + m[1, 1] * y + m[2, 1] * z
        back = m[0, 2] * x + m[1, 2] * y + m[2, 2] * z
        away = abs(up - slope) if parallel else abs(up + slope * back) * tilt
        spread = half_pixel if parallel else half_pixel * np.sqrt(x * x + y * y + z * z)
        if back < reach[i] and away <= reach[i] + spread:
            candidates[count] = i
            count += 1
    return count


@njit(cache=True)
def _trace(kind, param, inverse, centre, reach, candidates, count, px, py, pz, dx, dy, dz):
    """Intersect the ray p + t d, |d| = 1, with the solids whose indices are ``candidates[:count]``.

    The ray has p = (px, py, pz) and d = (dx, dy, dz). The first five arguments are arrays of all solids: kind and shape
    parameter (see `Primitive`), matrix from world to local axes, centre, and radius of a ball around the centre that
    contains the solid. Return five numbers of the nearest hit: index of the solid (-1 on a miss), distance t (inf on a
    miss), and unit normal (x, y, z) in world space.
    """
    best, hit = np.inf, -1
    bx, by, bz = 0.0, 0.0, 0.0
    for k in range(count):
        i = candidates[k]
        cx, cy, cz = centre[i, 0] - px, centre[i, 1] - py, centre[i, 2] - pz
        along = cx * dx + cy * dy + cz * dz
        off = cx * cx + cy * cy + cz * cz - along * along
        if off > reach[i] * reach[i] or along - reach[i] > best:
            continue
        m = inverse[i]
        ox = -(m[0, 0] * cx + m[0, 1] * cy + m[0, 2] * cz)
        oy = -(m[1, 0] * cx + m[1, 1] * cy + m[1, 2] * cz)
        oz = -(m[2, 0] * cx + m[2, 1] * cy + m[2, 2] * cz)
        ux = m[0, 0] * dx + m[0, 1] * dy + m[0, 2] * dz
        uy = m[1, 0] * dx + m[1, 1] * dy + m[1, 2] * dz
        uz = m[2, 0] * dx + m[2, 1] * dy + m[2, 2] * dz
        form = kind[i]
        if form == BOX or form == PRISM:
            t, nx, ny, nz = _slabs(form, ox, oy, oz, ux, uy, uz)
        elif form == SPHERE or form == DOME or form == FRUSTUM:
            t, nx, ny, nz = _quadric(form, param[i], ox, oy, oz, ux, uy, uz)
        else:
            t, nx, ny, nz = _ring(param[i], ox, oy, oz, ux, uy, uz)
        if t < best:
            best, hit = t, i
            bx = m[0, 0] * nx + m[1, 0] * ny + m[2, 0] * nz
            by = m[0, 1] * nx + m[1, 1] * ny + m[2, 1] * nz
            bz = m[0, 2] * nx + m[1, 2] * ny + m[2, 2] * nz
    norm = np.sqrt(bx * bx + by * by + bz * bz) + 1e-20
    return hit, best, bx / norm, by / norm, bz / norm


@njit(cache=True, parallel=True)
def _render(solids, offsets, asset_index, c2w, fov, grey, lamp, parallel, ss, with_gbuffer, rgb, depth, normal, label):
    kind, param, inverse, centre, reach, colour, label_of = solids
    views, height, width = rgb.shape[0], rgb.shape[1], rgb.shape[2]
    for row in prange(views * height):
        v, j = row // height, row % height
        start, stop = offsets[asset_index[v]], offsets[asset_index[v] + 1]
        m = c2w[v]
        focal = 0.5 * height / (fov[v] if parallel else np.tan(0.5 * fov[v]))
        candidates, slope = np.arange(start, stop), -(j + 0.5 - 0.5 * height) / focal
        count = _cull_row(centre, reach, start, stop, m, slope, 0.51 / focal, parallel, candidates)
        for i in range(width):
            r, g, b = 0.0, 0.0, 0.0
            samples = ss * ss + (1 if with_gbuffer else 0)
            for s in range(samples):
                if s < ss * ss:
                    x, y = i + (s % ss + 0.5) / ss, j + (s // ss + 0.5) / ss
                else:
                    x, y = i + 0.5, j + 0.5
                qx, qy, qz = (x - 0.5 * width) / focal, -(y - 0.5 * height) / focal, -1.0
                px, py, pz = m[0, 3], m[1, 3], m[2, 3]
                if parallel:
                    px += m[0, 0] * qx + m[0, 1] * qy
                    py += m[1, 0] * qx + m[1, 1] * qy
                    pz += m[2, 0] * qx + m[2, 1] * qy
                    qx, qy = 0.0, 0.0
                dx = m[0, 0] * qx + m[0, 1] * qy + m[0, 2] * qz
                dy = m[1, 0] * qx + m[1, 1] * qy + m[1, 2] * qz
                dz = m[2, 0] * qx + m[2, 1] * qy + m[2, 2] * qz
                norm = 1.0 / np.sqrt(dx * dx + dy * dy + dz * dz)
                dx, dy, dz = dx * norm, dy * norm, dz * norm
                hit, t, nx, ny, nz = _trace(
                    kind, param, inverse, centre, reach, candidates, count, px, py, pz, dx, dy, dz
                )
                if s == ss * ss:
                    if hit >= 0:
                        depth[v, j, i] = t
                        label[v, j, i] = label_of[hit]
                        normal[v, j, i, 0], normal[v, j, i, 1], normal[v, j, i, 2] = nx, ny, nz
                elif hit >= 0:
                    if len(lamp):
                        lx, ly, lz = lamp[v, 0] - px - t * dx, lamp[v, 1] - py - t * dy, lamp[v, 2] - pz - t * dz
                        facing = (nx * lx + ny * ly + nz * lz) / np.sqrt(lx * lx + ly * ly + lz * lz + 1e-12)
                        shade = 0.55 + 0.45 * max(0.0, facing)
                    else:
                        shade = 0.5 + 0.2 * nz + 0.3 * max(0.0, -(nx * dx + ny * dy + nz * dz))
                    r += shade * colour[hit, 0]
                    g += shade * colour[hit, 1]
                    b += shade * colour[hit, 2]
                else:
                    r += grey[v]
                    g += grey[v]
                    b += grey[v]
            rays = max(1, ss * ss)
            rgb[v, j, i, 0], rgb[v, j, i, 1], rgb[v, j, i, 2] = r / rays, g / rays, b / rays
