// Reader of GLB files (glTF 2.0, binary) into plain arrays; unsupported features throw an Error.
//
//   readGlb(bytes) -> { parts, images, splats }
//     parts: [{ positions, normals, tangents, colours, uvs, indices, factor, baseColour, normalMap, occlusion }]
//            in world axes, node transforms applied; tangents (x y z, sign), colours (r g b a, linear) and uvs may be
//            null; baseColour, normalMap and occlusion are textures { index into images, or -1; amount }
//     images: [{ bytes, type }]
//     splats: 3D Gaussians, or null: { positions, quaternions (x y z w), scales, opacities, harmonics: [RGB, ...] }
"use strict";

const GLB = {
  MAGIC: 0x46546c67, JSON: 0x4e4f534a, BINARY: 0x004e4942,
  WIDTH: { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 },
  ARRAY: { 5120: Int8Array, 5121: Uint8Array, 5122: Int16Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array },
  INTEGER_MAX: { 5120: 127, 5121: 255, 5122: 32767, 5123: 65535 },
  SPLATS: "KHR_gaussian_splatting",
  SUPPORTED_EXTENSIONS: ["KHR_mesh_quantization", "KHR_materials_unlit", "EXT_texture_webp", "KHR_gaussian_splatting"],
  IDENTITY: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
};

function readGlb(bytes) {
  const { json, binary } = glbChunks(bytes);
  const unsupported = (json.extensionsRequired || []).filter((name) => !GLB.SUPPORTED_EXTENSIONS.includes(name));
  if (unsupported.length) throw new Error(`unsupported glTF extension: ${unsupported.join(", ")}`);
  const parts = [];
  let splats = null;
  const visit = (index, parent) => {
    const node = json.nodes[index];
    const matrix = multiplyMatrices(parent, nodeMatrix(node));
    const primitives = node.mesh === undefined ? [] : json.meshes[node.mesh].primitives;
    for (const primitive of primitives) {
      if ((primitive.mode ?? 4) === 4) parts.push(readPart(json, binary, primitive, matrix));
      if (primitive.extensions?.[GLB.SPLATS]) splats = readSplats(json, binary, primitive, matrix);
    }
    for (const child of node.children || []) visit(child, matrix);
  };
  const roots = (json.scenes || [])[json.scene || 0]?.nodes || [];
  for (const root of roots) visit(root, GLB.IDENTITY);
  if (!parts.length && !splats) throw new Error("the file has no triangles");
  const images = (json.images || []).map((image) => readImage(json, binary, image));
  return { parts, images, splats };
}

function glbChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 20 || view.getUint32(0, true) !== GLB.MAGIC || view.getUint32(4, true) !== 2) {
    throw new Error("the file is not a GLB of version 2");
  }
  let json = null, binary = new Uint8Array(0);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at, true), kind = view.getUint32(at + 4, true);
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (body.length < length) throw new Error("the file is cut off");
    if (kind === GLB.JSON) json = JSON.parse(new TextDecoder().decode(body));
    if (kind === GLB.BINARY) binary = body;
    at += 8 + length;
  }
  if (!json) throw new Error("the JSON chunk is missing");
  return { json, binary };
}

function readPart(json, binary, primitive, matrix) {
  const attribute = (name) => {
    const index = primitive.attributes[name];
    return index === undefined ? null : readAccessor(json, binary, index);
  };
  const positions = attribute("POSITION").values;
  const count = positions.length / 3;
  const indices = primitive.indices === undefined
    ? Uint32Array.from({ length: count }, (_, k) => k)
    : Uint32Array.from(readAccessor(json, binary, primitive.indices).values);
  const material = (json.materials || [])[primitive.material] || {};
  const pbr = material.pbrMetallicRoughness || {};
  const baseColour = pbr.baseColorTexture, { normalTexture: normalMap, occlusionTexture: occlusion } = material;
  const set = (baseColour || normalMap || occlusion)?.texCoord || 0; // only one set of texture coordinates is read
  const texture = (info, amount) => info && (info.texCoord || 0) === set
    ? { index: textureImage(json.textures[info.index]), amount: amount ?? 1 } : { index: -1, amount: 0 };
  const normals = attribute("NORMAL")?.values || smoothNormals(positions, indices);
  const colours = attribute("COLOR_0"), tangents = attribute("TANGENT")?.values;
  return {
    positions: transformPoints(positions, matrix),
    normals: transformNormals(normals, matrix),
    tangents: tangents ? transformTangents(tangents, matrix) : null,
    colours: colours && withAlpha(colours),
    uvs: baseColour || normalMap || occlusion ? attribute(`TEXCOORD_${set}`)?.values || null : null,
    indices: determinant(matrix) < 0 ? indices.reverse() : indices, // a mirror swaps front and back faces
    factor: pbr.baseColorFactor || [1, 1, 1, 1],
    baseColour: texture(baseColour),
    normalMap: texture(normalMap, normalMap?.scale),
    occlusion: texture(occlusion, occlusion?.strength),
  };
}

function readSplats(json, binary, primitive, matrix) {
  if (matrix.some((value, k) => value !== GLB.IDENTITY[k])) throw new Error("transformed 3D Gaussians are not supported");
  const values = (name) => readAccessor(json, binary, primitive.attributes[name]).values;
  const names = ["SH_DEGREE_0_COEF_0", ...[0, 1, 2].map((k) => `SH_DEGREE_1_COEF_${k}`)].map((name) => `${GLB.SPLATS}:${name}`);
  return {
    positions: values("POSITION"),
    quaternions: values(`${GLB.SPLATS}:ROTATION`),
    scales: values(`${GLB.SPLATS}:SCALE`),
    opacities: values(`${GLB.SPLATS}:OPACITY`),
    harmonics: names.filter((name) => name in primitive.attributes).map(values),
  };
}

function textureImage(texture) {
  return texture.source ?? texture.extensions?.EXT_texture_webp?.source ?? -1;
}

function readImage(json, binary, image) {
  if (image.bufferView === undefined) throw new Error("an image is not stored in the file");
  const view = json.bufferViews[image.bufferView], start = view.byteOffset || 0;
  return { bytes: binary.slice(start, start + view.byteLength), type: image.mimeType || "" };
}

// Return the flat values of an accessor; normalised integers become floats.
function readAccessor(json, binary, index) {
  const accessor = json.accessors[index];
  if (accessor.sparse) throw new Error("sparse accessors are not supported");
  const width = GLB.WIDTH[accessor.type], kind = GLB.ARRAY[accessor.componentType];
  if (!width || !kind) throw new Error(`unknown accessor type: ${accessor.type}`);
  const values = new kind(accessor.count * width);
  if (accessor.bufferView !== undefined) {
    const view = json.bufferViews[accessor.bufferView];
    const start = (view.byteOffset || 0) + (accessor.byteOffset || 0);
    const row = width * kind.BYTES_PER_ELEMENT, stride = view.byteStride || row;
    if (start + (accessor.count - 1) * stride + row > binary.length) throw new Error("the data of an accessor are cut off");
    const target = new Uint8Array(values.buffer);
    for (let k = 0; k < accessor.count; k++) target.set(binary.subarray(start + k * stride, start + k * stride + row), k * row);
  }
  const largest = accessor.normalized ? GLB.INTEGER_MAX[accessor.componentType] : 1;
  const plain = largest === 1 ? values : Float32Array.from(values, (value) => Math.max(value / largest, -1));
  return { values: plain, width };
}

function withAlpha({ values, width }) {
  if (width === 4) return Float32Array.from(values);
  const result = new Float32Array((values.length / 3) * 4).fill(1);
  for (let k = 0; k < values.length / 3; k++) result.set(values.subarray(3 * k, 3 * k + 3), 4 * k);
  return result;
}

// Return area-weighted vertex normals, not normalised.
function smoothNormals(positions, indices) {
  const normals = new Float32Array(positions.length);
  for (let k = 0; k < indices.length; k += 3) {
    const [a, b, c] = [0, 1, 2].map((corner) => 3 * indices[k + corner]);
    const edge = (to) => [0, 1, 2].map((axis) => positions[to + axis] - positions[a + axis]);
    const normal = cross(edge(b), edge(c));
    for (const corner of [a, b, c]) for (let axis = 0; axis < 3; axis++) normals[corner + axis] += normal[axis];
  }
  return normals;
}

// --- 4 x 4 matrices, column-major as in glTF and WebGL

function nodeMatrix(node) {
  if (node.matrix) return node.matrix;
  const [x, y, z, w] = node.rotation || [0, 0, 0, 1];
  const [a, b, c] = node.scale || [1, 1, 1];
  const [p, q, r] = node.translation || [0, 0, 0];
  return [
    a * (1 - 2 * (y * y + z * z)), a * 2 * (x * y + z * w), a * 2 * (x * z - y * w), 0,
    b * 2 * (x * y - z * w), b * (1 - 2 * (x * x + z * z)), b * 2 * (y * z + x * w), 0,
    c * 2 * (x * z + y * w), c * 2 * (y * z - x * w), c * (1 - 2 * (x * x + y * y)), 0,
    p, q, r, 1,
  ];
}

function multiplyMatrices(a, b) {
  const result = new Array(16).fill(0);
  for (let column = 0; column < 4; column++)
    for (let row = 0; row < 4; row++)
      for (let k = 0; k < 4; k++) result[4 * column + row] += a[4 * k + row] * b[4 * column + k];
  return result;
}

function cross(a, b) {
  return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
}

// The result has 64-bit numbers: a translation, such as of a map's coordinates, can be far larger than the mesh.
function transformPoints(points, m) {
  const result = new Float64Array(points.length);
  for (let k = 0; k < points.length; k += 3)
    for (let row = 0; row < 3; row++)
      result[k + row] = m[row] * points[k] + m[4 + row] * points[k + 1] + m[8 + row] * points[k + 2] + m[12 + row];
  return result;
}

// Transform tangents (x y z, sign) with the surface; a mirror flips the sign of the bitangent.
function transformTangents(tangents, m) {
  const result = new Float32Array(tangents.length), sign = Math.sign(determinant(m)) || 1;
  for (let k = 0; k < tangents.length; k += 4) {
    for (let row = 0; row < 3; row++)
      result[k + row] = m[row] * tangents[k] + m[4 + row] * tangents[k + 1] + m[8 + row] * tangents[k + 2];
    result[k + 3] = sign * tangents[k + 3];
  }
  return result;
}

// Return the determinant of the upper 3 x 3 block; negative for a mirror.
function determinant(m) {
  const normal = cross(m.slice(4, 7), m.slice(8, 11));
  return m[0] * normal[0] + m[1] * normal[1] + m[2] * normal[2];
}

// Transform normals by the cofactor matrix, which is correct for any scale; the sign keeps them outward in a mirror.
function transformNormals(normals, m) {
  const [x, y, z] = [m.slice(0, 3), m.slice(4, 7), m.slice(8, 11)];
  const sign = Math.sign(determinant(m)) || 1;
  const columns = [cross(y, z), cross(z, x), cross(x, y)].map((column) => column.map((value) => sign * value));
  const result = new Float32Array(normals.length);
  for (let k = 0; k < normals.length; k += 3)
    for (let row = 0; row < 3; row++)
      result[k + row] = columns[0][row] * normals[k] + columns[1][row] * normals[k + 1] + columns[2][row] * normals[k + 2];
  return result;
}
