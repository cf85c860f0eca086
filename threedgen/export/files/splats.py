"""Writers of 3D Gaussians: PLY as in 3D Gaussian Splatting, and GLB with the extension KHR_gaussian_splatting."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from torch.nn.functional import normalize

from threedgen.export.files.glb import splat_glb_bytes
from threedgen.representations.gaussians.field import Gaussians
from threedgen.representations.gaussians.points import PLY_AXES, SH_0
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree, write_atomic


@dataclass(frozen=True)
class SplatArrays:
    """N 3D Gaussians as float32 arrays.

    Attributes:
        means: (N, 3) positions.
        quaternions: (N, 4) unit quaternions, real part first.
        scales: (N, 3) standard deviations, in the unit of the positions.
        opacities: (N,) in [0, 1].
        harmonics: (N, K, 3) RGB coefficients of K spherical harmonics: K = 1 (degree 0) or K = 4 (degrees 0 and 1;
            those of degree 1 are proportional to -y, z, -x, as in 3D Gaussian Splatting). The sRGB colour in a viewing
            direction (x, y, z) is 0.5 + the sum of coefficient * harmonic, clamped to [0, 1].
    """

    means: Array
    quaternions: Array
    scales: Array
    opacities: Array
    harmonics: Array

    @classmethod
    def of(cls, field: Gaussians) -> "SplatArrays":
        """Return the arrays of a trained representation of 3D Gaussians, in world axes (z up) and world units."""
        unit = normalize(field.quaternions, dim=-1)
        parts = (field.means, unit, field.log_scales.exp(), field.opacity_logits.sigmoid(), field.features)
        return cls(*(part.detach().float().cpu().numpy() for part in parts))

    @property
    def colours(self) -> Array:
        """Mean sRGB colours (N, 3) over all viewing directions."""
        colours: Array = 0.5 + SH_0 * self.harmonics[:, 0]
        return colours

    def rotated(self, matrix: Array) -> "SplatArrays":
        """Return the Gaussians, rotated about the origin by the matrix R = `matrix` (3, 3): positions x become R x."""
        before = Rotation.from_quat(self.quaternions[:, [1, 2, 3, 0]])
        after = (Rotation.from_matrix(matrix) * before).as_quat()[:, [3, 0, 1, 2]]
        harmonics = self.harmonics.copy()
        if harmonics.shape[1] == 4:  # degree 1 is linear in the direction: -y, z, -x
            vectors = np.stack([-harmonics[:, 3], -harmonics[:, 1], harmonics[:, 2]], axis=1)
            x, y, z = np.moveaxis(np.einsum("ij,njc->nic", matrix, vectors), 1, 0)
            harmonics[:, 1:] = np.stack([-y, z, -x], axis=1)
        means = (self.means @ matrix.T).astype(np.float32)
        return replace(self, means=means, quaternions=after.astype(np.float32), harmonics=harmonics)


def ply_bytes(splats: SplatArrays) -> bytes:
    """Return the bytes of a PLY file in the format of the reference code of 3D Gaussian Splatting.

    The Gaussians are rotated from world axes (z up, front +x) to the file's axes (y down, front +z).
    """
    turned = splats.rotated(PLY_AXES)
    opacity = np.clip(turned.opacities.astype(np.float64), 1e-7, 1 - 1e-7)
    rest = turned.harmonics[:, 1:].transpose(0, 2, 1).reshape(len(turned.means), -1)  # all of red, green, blue
    columns: dict[str, Any] = {"x y z": turned.means, "nx ny nz": np.zeros_like(turned.means)}
    columns |= {"f_dc_0 f_dc_1 f_dc_2": turned.harmonics[:, 0]}
    columns |= {" ".join(f"f_rest_{k}" for k in range(rest.shape[1])): rest} if rest.size else {}
    columns |= {"opacity": np.log(opacity / (1 - opacity))[:, None], "scale_0 scale_1 scale_2": np.log(turned.scales)}
    columns |= {"rot_0 rot_1 rot_2 rot_3": turned.quaternions}
    names = " ".join(columns).split()
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(turned.means)}"]
    head += [*(f"property float {name}" for name in names), "end_header", ""]
    return "\n".join(head).encode("ascii") + np.column_stack(list(columns.values())).astype("<f4").tobytes()


def write(system: Any, folder: Path) -> Tree:
    """Write gaussians.ply and gaussians.glb to `folder`. Return {"gaussians": number of Gaussians}.

    `system` is the trained LightningModule of a run, whose attribute `field` is a `Gaussians`.
    """
    splats = SplatArrays.of(system.field)
    extras = {"prompt": system.config.prompt, "seed": system.config.seed}
    write_atomic(folder / "gaussians.ply", ply_bytes(splats))
    write_atomic(folder / "gaussians.glb", splat_glb_bytes(splats, "gaussians", extras))
    return {"gaussians": len(splats.means)}
