// Writes the meshes of files, as three.js imports them, to a JSON file; see read_in_blender.py. Images are image files.
//     node read_in_three.mjs THREE OUT FILE...      THREE: folder of the npm package three
import { resolveObjectURL } from "node:buffer";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { pathToFileURL } from "node:url";

const [three, out, ...files] = process.argv.slice(2);
const base64 = async (blob) => Buffer.from(await blob.arrayBuffer()).toString("base64");
const waiting = [];
class Picture { // stands in for the image of a browser
  addEventListener(type, listener) { if (type === "load") this.loaded = listener; }
  removeEventListener() {}
  set src(url) {
    const read = async () => {
      this.file = url.startsWith("blob:") ? await base64(resolveObjectURL(url)) : readFileSync(url).toString("base64");
      this.loaded?.call(this);
    };
    waiting.push(read());
  }
}
globalThis.self = globalThis;
globalThis.document = { createElementNS: () => new Picture() };
globalThis.createImageBitmap = async (blob) => ({ file: await base64(blob) });

const { Vector3 } = await import(pathToFileURL(`${three}/build/three.module.js`));
const loader = async (name) => new (await import(pathToFileURL(`${three}/examples/jsm/loaders/${name}.js`)))[name]();
const bytes = (file) => new Uint8Array(readFileSync(file)).buffer;
const READERS = {
  glb: async (file) => (await (await loader("GLTFLoader")).parseAsync(bytes(file), "")).scene,
  usdz: async (file) => (await loader("USDLoader")).parse(bytes(file)),
  obj: async (file) => {
    const obj = await loader("OBJLoader"), mtl = file.replace(/obj$/, "mtl");
    if (existsSync(mtl)) obj.setMaterials((await loader("MTLLoader")).parse(readFileSync(mtl, "utf8"), `${dirname(file)}/`));
    return obj.parse(readFileSync(file, "utf8"));
  },
};

function record(mesh) {
  const { index, attributes: { position, normal, uv } } = mesh.geometry;
  const rows = index ? Array.from(index.array) : Array.from({ length: position.count }, (_, row) => row);
  const vectors = (values, move) => rows.map((row) => move(new Vector3().fromBufferAttribute(values, row)).toArray());
  const found = { vertices: index ? position.count : null, corners: vectors(position, (at) => at.applyMatrix4(mesh.matrixWorld)) };
  if (normal) found.normals = vectors(normal, (to) => to.transformDirection(mesh.matrixWorld));
  const material = mesh.material, up = (v) => (material.map?.flipY ? v : 1 - v);
  if (uv) found.uv = rows.map((row) => [uv.getX(row), up(uv.getY(row))]);
  if (material.name) found.material = material.name;
  const slots = { base_colour: "map", normal: "normalMap", roughness: "roughnessMap", metallic: "metalnessMap" };
  found.maps = {};
  for (const [slot, name] of Object.entries({ ...slots, occlusion: "aoMap" })) {
    if (material[name]?.image?.file) found.maps[slot] = material[name].image.file;
  }
  found.factors = { roughness: material.roughness, metallic: material.metalness };
  return found;
}

const found = {};
for (const file of files) {
  const scene = await READERS[file.split(".").pop()](file);
  await new Promise((resolve) => setTimeout(resolve, 50)); // textures are read after the scene
  await Promise.all(waiting);
  scene.updateMatrixWorld(true);
  const meshes = (found[basename(file)] = {});
  scene.traverse((node) => { if (node.isMesh) meshes[node.userData.name ?? node.name] = record(node); });
}
writeFileSync(out, JSON.stringify(found));
