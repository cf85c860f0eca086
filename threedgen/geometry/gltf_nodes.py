"""Nodes of glTF files: where the scene has a mesh, its copies and the joints of its skin."""

from functools import cache, cached_property

import numpy as np

from threedgen.geometry.gltf_data import GltfData
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

INSTANCES = "EXT_mesh_gpu_instancing"
IDENTITY = {"TRANSLATION": (0, 0, 0), "ROTATION": (0, 0, 0, 1), "SCALE": (1, 1, 1)}
"""Default translation, rotation (quaternion x, y, z, w) and scale of nodes and instances: the identity transform."""


class GltfNodes:
    """Nodes of the glTF file `data`: which are visible, and the transforms of their meshes into scene coordinates.

    `visible` returns the indices of the nodes in the default scene, without those that an extension of the file hides.
    `transforms` has the matrix of each node, `instances` returns those of the copies of a node's mesh, and `skinning`
    those of the vertices of a skinned mesh.
    """

    def __init__(self, data: GltfData) -> None:
        self.data, self.nodes, self.joints = data, data.tree.get("nodes", []), cache(self._joints)

    @cached_property
    def transforms(self) -> dict[int, Array]:
        """Dict with the node-to-scene transform (4, 4) of each node of the file, by the index of the node.

        Nodes outside of the scene are included, because joints of a skin can be such nodes.
        """
        texts = {key: [node.get(key.lower(), default) for node in self.nodes] for key, default in IDENTITY.items()}
        local = _local({key: np.array(text, float).reshape(-1, len(IDENTITY[key])) for key, text in texts.items()})
        found, scene = dict[int, Array](), np.eye(4)
        stack: list[tuple[int, Array]] = [(root, scene) for root in (*self.roots(), *self.scene_roots())]
        while stack:
            index, parent = stack.pop()
            if index not in found:
                matrix = self.nodes[index].get("matrix")
                found[index] = parent @ (local[index] if matrix is None else np.array(matrix, float).reshape(4, 4).T)
                stack += [(child, found[index]) for child in self.nodes[index].get("children", [])]
        return found

    def roots(self) -> list[int]:
        """Return the indices of all nodes without a parent."""
        children = {child for node in self.nodes for child in node.get("children", [])}
        return [index for index in range(len(self.nodes)) if index not in children]

    def scene_roots(self) -> list[int]:
        """Return the indices of the top nodes of the default scene."""
        scenes = self.data.tree.get("scenes", [])
        return scenes[self.data.tree.get("scene", 0)].get("nodes", []) if scenes else self.roots()

    def visible(self) -> list[int]:
        """Return the indices of the nodes in the default scene, without hidden ones (KHR_node_visibility)."""
        found, stack = dict[int, None](), self.scene_roots()[:]
        while stack:
            index = stack.pop()
            shown = self.nodes[index].get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
            if shown and index not in found:
                found[index] = None
                stack += self.nodes[index].get("children", [])
        return list(found)

    def copies(self, index: int) -> int:
        """Return the number of copies of the mesh of node `index` (EXT_mesh_gpu_instancing); 1 without instancing."""
        return max((self.data.tree["accessors"][k]["count"] for k in self._instancing(index).values()), default=1)

    def _instancing(self, index: int) -> Tree:
        # attribute -> number of its accessor
        return self.nodes[index].get("extensions", {}).get(INSTANCES, {}).get("attributes", {})

    def instances(self, index: int) -> Array:
        """Return the node-to-scene transforms (N, 4, 4) of the N copies of the mesh of node `index`."""
        attributes = self._instancing(index)
        if not attributes:
            return self.transforms[index][None]
        stored = {key: self.data.accessor_array(k, normalise=True) for key, k in attributes.items() if key in IDENTITY}
        count = self.copies(index)
        local = _local({key: stored.get(key, np.tile(value, (count, 1))) for key, value in IDENTITY.items()})
        return np.asarray(self.transforms[index] @ local)

    def _joints(self, index: int) -> Array:
        # matrices (J, 4, 4) of the J joints of a skin: they map vertices from the bind pose to the scene
        skin = self.data.tree["skins"][index]
        joints = np.stack([self.transforms[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.data.accessor_array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
            joints = joints @ inverse[: len(joints)].astype(np.float64)
        return joints

    def skinning(self, primitive: Tree, index: int, rows: Array | None) -> Array:
        """Return the vertex-to-scene transforms (R, 4, 4) of a skinned primitive, one per vertex.

        Each one is the weighted mean of the transforms of the vertex's joints. `index` is the index of the skin. `rows`
        (R,) are the indices of the vertices to read; None: all.
        """
        joints, attributes, read = self.joints(index), primitive["attributes"], self.data.accessor_array
        sets = [key[7:] for key in attributes if key.startswith("JOINTS_")]
        chosen = np.concatenate([read(attributes[f"JOINTS_{k}"], rows) for k in sets], axis=1).astype(int)
        weights = np.concatenate([read(attributes[f"WEIGHTS_{k}"], rows, True) for k in sets], axis=1)
        weights = weights / np.maximum(weights.sum(1, keepdims=True, dtype=np.float64), 1e-12)
        result = np.zeros((len(chosen), 4, 4))
        for joint, weight in zip(chosen.T, weights.T, strict=True):
            result += weight[:, None, None] * joints[joint]
        return result


def _local(parts: dict[str, Array]) -> Array:
    # transforms (N, 4, 4) from "TRANSLATION" (N, 3), "ROTATION" (N, 4), x y z w, and "SCALE" (N, 3)
    from trimesh.transformations import quaternion_matrix

    result: Array = quaternion_matrix(parts["ROTATION"][:, [3, 0, 1, 2]]).reshape(-1, 4, 4)
    result[:, :3, :3] *= parts["SCALE"][:, None]
    result[:, :3, 3] = parts["TRANSLATION"]
    return result
