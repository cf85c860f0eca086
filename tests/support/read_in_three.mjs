// Writes the meshes of GLB files, as three.js imports them, to a JSON file; see read_in_blender.py. Images are PNG files.
//     node read_in_three.mjs OUT THREE FILE...      THREE: folder of the npm package three
import { readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { pathToFileURL } from "node:url";

const [out, three, ...files] = process.argv.slice(2);
globalThis.self = globalThis;
globalThis.createImageBitmap = async (blob) => ({ png: Buffer.from(await blob.arrayBuffer()).toString("base64") });
const { Vector3 } = await import(pathToFileURL(`${three}/build/three.module.js`));
const { GLTFLoader } = await import(pathToFileURL(`${three}/examples/jsm/loaders/GLTFLoader.js`));

function record(mesh) {
  const { position, uv } = mesh.geometry.attributes;
  const rows = Array.from(mesh.geometry.index.array);
  const point = (row) => new Vector3().fromBufferAttribute(position, row).applyMatrix4(mesh.matrixWorld).toArray();
  const found = { vertices: position.count, corners: rows.map(point) };
  if (uv) found.uv = rows.map((row) => [uv.getX(row), 1 - uv.getY(row)]);
  if (mesh.material.name) found.material = mesh.material.name;
  if (mesh.material.map) found.image = mesh.material.map.image.png;
  return found;
}

const found = {};
for (const file of files) {
  const gltf = await new GLTFLoader().parseAsync(new Uint8Array(readFileSync(file)).buffer, "");
  gltf.scene.updateMatrixWorld(true);
  const meshes = (found[basename(file)] = {});
  gltf.scene.traverse((node) => { if (node.isMesh) meshes[node.userData.name ?? node.name] = record(node); });
}
writeFileSync(out, JSON.stringify(found));
