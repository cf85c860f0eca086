// Writes the 3D Gaussians of PLY and GLB files, as three.js imports them, to a JSON file.
//     node read_splats_in_three.mjs OUT THREE FILE...      THREE: folder of the npm package three
import { readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { pathToFileURL } from "node:url";

const [out, three, ...files] = process.argv.slice(2);
globalThis.self = globalThis;
const load = (name) => import(pathToFileURL(`${three}/examples/jsm/loaders/${name}.js`));
const { GLTFLoader } = await load("GLTFLoader");
const { GLTFGaussianSplatLoaderExtension } = await load("GLTFGaussianSplatLoaderExtension");
const { GaussianSplatPLYLoader } = await load("GaussianSplatPLYLoader");

async function geometry(file) {
  const data = new Uint8Array(readFileSync(file)).buffer;
  if (file.endsWith(".ply")) return new GaussianSplatPLYLoader().parse(data);
  const loader = new GLTFLoader();
  loader.register((parser) => new GLTFGaussianSplatLoaderExtension(parser));
  const found = [];
  (await loader.parseAsync(data, "")).scene.traverse((node) => { if (node.isGaussianSplat) found.push(node.splatGeometry); });
  return found[0];
}

const found = {};
for (const file of files) {
  const { attributes } = await geometry(file);
  found[basename(file)] = Object.fromEntries(Object.entries(attributes).map(([name, { array }]) => [name, Array.from(array)]));
}
writeFileSync(out, JSON.stringify(found));
