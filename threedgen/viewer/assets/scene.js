// WebGL renderer of an asset read by glb.js.
"use strict";

const VERTEX = `#version 300 es
  layout(location = 0) in vec3 position;
  layout(location = 1) in vec3 normal;
  layout(location = 2) in vec4 colour;
  layout(location = 3) in vec2 uv;
  layout(location = 4) in vec4 tangent;
  uniform mat4 camera;   // world to clip
  uniform mat3 rotation; // world to view, directions
  uniform highp int mode;
  out vec3 viewNormal;
  out vec4 viewTangent;
  out vec4 tint;
  out vec2 texCoord;
  void main() {
    gl_Position = camera * vec4(position, 1.0);
    if (mode == 4) gl_Position.z -= 0.002 * gl_Position.w; // wires are in front of the surface
    viewNormal = rotation * normal;
    viewTangent = vec4(rotation * tangent.xyz, tangent.w);
    tint = colour;
    texCoord = uv;
  }`;

// Soft light fixed to the camera: a key light from above left, a fill light from the right, sky and ground.
const FRAGMENT = `#version 300 es
  precision highp float;
  in vec3 viewNormal;
  in vec4 viewTangent;
  in vec4 tint;
  in vec2 texCoord;
  uniform vec3 up;       // up axis of the world, in view coordinates
  uniform vec4 factor;
  uniform sampler2D baseColour, normalMap, occlusion;
  uniform bool textured;
  uniform float normalScale, occlusionStrength;  // 0: no such texture
  uniform highp int mode; // 0 lit, 1 colour, 2 normals, 3 lit below wires, 4 wires
  out vec4 pixel;
  vec3 toSrgb(vec3 c) {
    return mix(12.92 * c, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(vec3(0.0031308), c));
  }
  void main() {
    vec3 normal = normalize(viewNormal);
    if (normalScale != 0.0) { // MikkTSpace: the tangent frame is not orthogonalised
      vec3 bump = (texture(normalMap, texCoord).xyz * 2.0 - 1.0) * vec3(normalScale, normalScale, 1.0);
      vec3 bitangent = cross(viewNormal, viewTangent.xyz) * viewTangent.w;
      normal = normalize(bump.x * viewTangent.xyz + bump.y * bitangent + bump.z * viewNormal);
    }
    if (!gl_FrontFacing) normal = -normal;
    if (mode == 2) { pixel = vec4(normal * 0.5 + 0.5, 1.0); return; }
    vec3 base = factor.rgb * tint.rgb;
    if (textured) base *= texture(baseColour, texCoord).rgb;
    float key = max(dot(normal, normalize(vec3(-0.45, 0.6, 0.75))), 0.0);
    float fill = max(dot(normal, normalize(vec3(0.8, 0.1, 0.5))), 0.0);
    float open = mix(1.0, texture(occlusion, texCoord).r, occlusionStrength); // darkens the sky light only
    float sky = open * mix(0.3, 0.55, 0.5 + 0.5 * dot(normal, up));
    if (mode == 4) { // black on light surfaces, white on dark ones
      float bright = dot(toSrgb(clamp(base, 0.0, 1.0)), vec3(0.3, 0.59, 0.11));
      pixel = bright > 0.28 ? vec4(0.0, 0.0, 0.0, 0.45) : vec4(0.6);
      return;
    }
    float light = mode == 1 ? 1.0 : sky + 0.55 * key + 0.12 * fill;
    pixel = vec4(toSrgb(clamp(base * light, 0.0, 1.0)), 1.0);
  }`;

const FOV = (30 * Math.PI) / 180;
const WIRES = 3, WIRES_ONLY = 4;
const BASE_COLOUR = 0, NORMAL_MAP = 1, OCCLUSION = 2; // texture units

class Scene {
  constructor(gl, { parts }) {
    this.gl = gl;
    Object.assign(this, boundingSphere(parts));
  }

  // Upload everything to the GPU; the promise `ready` resolves after the textures are loaded.
  build({ parts, images }) {
    const gl = this.gl;
    this.program = linkProgram(gl, VERTEX, FRAGMENT);
    const names = ["camera", "rotation", "up", "factor", "baseColour", "normalMap", "occlusion", "textured", "normalScale",
      "occlusionStrength", "mode"];
    this.uniforms = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(this.program, name)]));
    this.parts = parts.map((part) => this.upload(part));
    this.textures = [];
    const srgb = new Set(parts.map((part) => part.baseColour.index));
    this.ready = Promise.allSettled(images.map(async ({ bytes, type }, k) => {
      const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
      this.textures[k] = createTexture(gl, await createImageBitmap(new Blob([bytes], { type }), options), srgb.has(k));
    })); // an unreadable image does not affect the others
  }

  upload(part) {
    const gl = this.gl, array = gl.createVertexArray();
    gl.bindVertexArray(array);
    const attribute = (location, values, width) => {
      if (!values) return;
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, values instanceof Float32Array ? values : Float32Array.from(values), gl.STATIC_DRAW);
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, width, gl.FLOAT, false, 0, 0);
    };
    attribute(0, part.positions.map((value, k) => value - this.centre[k % 3]), 3); // small, as the GPU has 32 bits
    attribute(1, part.normals, 3);
    attribute(2, part.colours, 4);
    attribute(3, part.uvs, 2);
    attribute(4, part.tangents, 4);
    const buffer = (values) => {
      const id = gl.createBuffer();
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, id);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, values, gl.STATIC_DRAW);
      return id;
    };
    const wires = new Uint32Array(2 * part.indices.length);
    for (let k = 0; k < part.indices.length; k += 3)
      for (let edge = 0; edge < 3; edge++)
        wires.set([part.indices[k + edge], part.indices[k + ((edge + 1) % 3)]], 2 * (k + edge));
    const none = { index: -1, amount: 0 }, { baseColour, normalMap, occlusion } = part;
    return {
      array, count: part.indices.length, factor: part.factor, triangles: buffer(part.indices), wires: buffer(wires),
      baseColour: part.uvs ? baseColour : none, normalMap: part.uvs && part.tangents ? normalMap : none,
      occlusion: part.uvs ? occlusion : none,
    };
  }

  draw(view, width, height) {
    const gl = this.gl, at = this.uniforms;
    const { camera, rotation } = cameraMatrices(view, [0, 0, 0], this.radius, width / height);
    startFrame(gl, width, height);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.uniformMatrix4fv(at.camera, false, camera);
    gl.uniformMatrix3fv(at.rotation, false, rotation);
    gl.uniform3f(at.up, rotation[3], rotation[4], rotation[5]);
    gl.vertexAttrib4f(2, 1, 1, 1, 1); // for parts without colours
    gl.uniform1i(at.baseColour, BASE_COLOUR);
    gl.uniform1i(at.normalMap, NORMAL_MAP);
    gl.uniform1i(at.occlusion, OCCLUSION);
    // bind a texture to its unit and return its amount; 0 while it is not loaded
    const bind = (unit, { index, amount }) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, this.textures[index] || null);
      return this.textures[index] ? amount : 0;
    };
    for (const part of this.parts) {
      gl.bindVertexArray(part.array);
      gl.uniform1i(at.textured, bind(BASE_COLOUR, part.baseColour) ? 1 : 0);
      gl.uniform1f(at.normalScale, bind(NORMAL_MAP, part.normalMap));
      gl.uniform1f(at.occlusionStrength, bind(OCCLUSION, part.occlusion));
      gl.uniform4fv(at.factor, part.factor);
      gl.uniform1i(at.mode, view.mode);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, part.triangles);
      gl.drawElements(gl.TRIANGLES, part.count, gl.UNSIGNED_INT, 0);
      if (view.mode !== WIRES) continue;
      gl.uniform1i(at.mode, WIRES_ONLY);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, part.wires);
      gl.drawElements(gl.LINES, 2 * part.count, gl.UNSIGNED_INT, 0);
    }
  }
}

// Return the centre of the bounding box of all positions, and the radius of the sphere around it.
function boundingSphere(parts) {
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (const { positions } of parts)
    for (let k = 0; k < positions.length; k++) {
      low[k % 3] = Math.min(low[k % 3], positions[k]);
      high[k % 3] = Math.max(high[k % 3], positions[k]);
    }
  const centre = low.map((value, axis) => (value + high[axis]) / 2);
  let radius = 0;
  for (const { positions } of parts)
    for (let k = 0; k < positions.length; k += 3)
      radius = Math.max(radius, Math.hypot(...centre.map((value, axis) => positions[k + axis] - value)));
  if (!Number.isFinite(radius)) throw new Error("the positions are not finite");
  return { centre, radius: radius || 1 };
}

// clear the canvas, and blend colours that are multiplied by their opacity
function startFrame(gl, width, height) {
  gl.viewport(0, 0, width, height);
  gl.clearColor(0, 0, 0, 0); // the page shows through
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
}

// Return the world-to-clip matrix (4 x 4) and the world-to-view rotation (3 x 3), column-major, and the distance of the
// camera from the centre.
function cameraMatrices({ azimuth, elevation, zoom }, centre, radius, aspect) {
  const back = [Math.sin(azimuth) * Math.cos(elevation), Math.sin(elevation), Math.cos(azimuth) * Math.cos(elevation)];
  const right = [Math.cos(azimuth), 0, -Math.sin(azimuth)];
  const up = cross(back, right);
  const scale = 1 / Math.tan(FOV / 2);
  const narrow = Math.min(1, aspect); // a portrait canvas has a smaller horizontal fov
  const distance = (1.08 * radius) / Math.sin(Math.atan(narrow / scale)) / zoom;
  const near = Math.max(distance - 1.2 * radius, 0.01 * radius), far = distance + 1.2 * radius;
  const toView = (axis) => -(axis[0] * centre[0] + axis[1] * centre[1] + axis[2] * centre[2]);
  const view = [
    right[0], up[0], back[0], 0,
    right[1], up[1], back[1], 0,
    right[2], up[2], back[2], 0,
    toView(right), toView(up), toView(back) - distance, 1,
  ];
  const projection = [
    scale / aspect, 0, 0, 0,
    0, scale, 0, 0,
    0, 0, (far + near) / (near - far), -1,
    0, 0, (2 * far * near) / (near - far), 0,
  ];
  const rotation = [right[0], up[0], back[0], right[1], up[1], back[1], right[2], up[2], back[2]];
  return { camera: multiplyMatrices(projection, view), rotation, distance };
}

// Create a texture; sRGB for colours, so that filtering is linear. As in glTF, the first row is the top: no flipping.
function createTexture(gl, bitmap, srgb) {
  const id = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, id);
  gl.texImage2D(gl.TEXTURE_2D, 0, srgb ? gl.SRGB8_ALPHA8 : gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  return id;
}
