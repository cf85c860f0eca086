// What is drawn: an asset that glb.js has read, on the graphics card, and the camera that looks at it.
"use strict";

const VERTEX = `#version 300 es
  layout(location = 0) in vec3 position;
  layout(location = 1) in vec3 normal;
  layout(location = 2) in vec4 colour;
  layout(location = 3) in vec2 uv;
  layout(location = 4) in vec4 tangent;
  uniform mat4 camera;   // world to clip
  uniform mat3 eye;      // world to view, directions
  out vec3 seenNormal;
  out vec4 seenTangent;
  out vec4 tint;
  out vec2 place;
  void main() {
    gl_Position = camera * vec4(position, 1.0);
    seenNormal = eye * normal;
    seenTangent = vec4(eye * tangent.xyz, tangent.w);
    tint = colour;
    place = uv;
  }`;

// Soft light that stays with the viewer: a key light from above left, a fill from the right, sky and ground.
const FRAGMENT = `#version 300 es
  precision highp float;
  in vec3 seenNormal;
  in vec4 seenTangent;
  in vec4 tint;
  in vec2 place;
  uniform vec3 up;       // the world's up, in view
  uniform vec4 factor;
  uniform sampler2D picture, relief, openness;
  uniform bool pictured;
  uniform float reliefScale, opennessStrength;  // 0: there is no such map
  uniform int mode;      // 0 lit, 1 colour, 2 normals, 3 lit under wires, 4 the wires
  out vec4 pixel;
  vec3 encoded(vec3 c) {
    return mix(12.92 * c, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(vec3(0.0031308), c));
  }
  void main() {
    vec3 normal = normalize(seenNormal);
    if (reliefScale != 0.0) { // as MikkTSpace has it: the frame is not made orthogonal again
      vec3 bump = (texture(relief, place).xyz * 2.0 - 1.0) * vec3(reliefScale, reliefScale, 1.0);
      vec3 across = cross(seenNormal, seenTangent.xyz) * seenTangent.w;
      normal = normalize(bump.x * seenTangent.xyz + bump.y * across + bump.z * seenNormal);
    }
    if (!gl_FrontFacing) normal = -normal;
    if (mode == 4) { pixel = vec4(0.0, 0.0, 0.0, 0.45); pixel.rgb *= pixel.a; return; }
    if (mode == 2) { pixel = vec4(normal * 0.5 + 0.5, 1.0); return; }
    vec3 base = factor.rgb * tint.rgb;
    if (pictured) base *= texture(picture, place).rgb;
    float key = max(dot(normal, normalize(vec3(-0.45, 0.6, 0.75))), 0.0);
    float fill = max(dot(normal, normalize(vec3(0.8, 0.1, 0.5))), 0.0);
    float open = mix(1.0, texture(openness, place).r, opennessStrength); // hides the sky, not the lamps
    float sky = open * mix(0.3, 0.55, 0.5 + 0.5 * dot(normal, up));
    float light = mode == 1 ? 1.0 : sky + 0.55 * key + 0.12 * fill;
    pixel = vec4(encoded(clamp(base * light, 0.0, 1.0)), 1.0);
  }`;

const FOV = (30 * Math.PI) / 180;
const WIRES = 3, WIRES_ONLY = 4;
const PICTURE = 0, RELIEF = 1, OPENNESS = 2; // texture units

class Scene {
  constructor(gl, asset) {
    this.gl = gl;
    this.bound(asset.parts);
  }

  // The middle of the asset's box and the radius around it.
  bound(parts) {
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (const { positions } of parts)
      for (let k = 0; k < positions.length; k++) {
        low[k % 3] = Math.min(low[k % 3], positions[k]);
        high[k % 3] = Math.max(high[k % 3], positions[k]);
      }
    this.centre = low.map((value, axis) => (value + high[axis]) / 2);
    let radius = 0;
    for (const { positions } of parts)
      for (let k = 0; k < positions.length; k += 3)
        radius = Math.max(radius, Math.hypot(...this.centre.map((value, axis) => positions[k + axis] - value)));
    if (!Number.isFinite(radius)) throw new Error("its positions are no numbers");
    this.radius = radius || 1;
  }

  // Everything on the graphics card; `ready` is kept when the pictures are there too.
  build({ parts, images }) {
    const gl = this.gl;
    this.program = linked(gl, VERTEX, FRAGMENT);
    const names = ["camera", "eye", "up", "factor", "picture", "relief", "openness", "pictured", "reliefScale",
      "opennessStrength", "mode"];
    this.at = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(this.program, name)]));
    this.parts = parts.map((part) => this.upload(part));
    this.textures = [];
    const coloured = new Set(parts.map((part) => part.image.index));
    this.ready = Promise.allSettled(images.map(async ({ bytes, type }, k) => {
      const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
      this.textures[k] = texture(gl, await createImageBitmap(new Blob([bytes], { type }), options), coloured.has(k));
    })); // a picture that cannot be read leaves the others
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
    attribute(0, part.positions, 3);
    attribute(1, part.normals, 3);
    attribute(2, part.colours, 4);
    attribute(3, part.uvs, 2);
    attribute(4, part.tangents, 4);
    const buffer = (values) => {
      const made = gl.createBuffer();
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, made);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, values, gl.STATIC_DRAW);
      return made;
    };
    const wires = new Uint32Array(2 * part.indices.length);
    for (let k = 0; k < part.indices.length; k += 3)
      for (let edge = 0; edge < 3; edge++)
        wires.set([part.indices[k + edge], part.indices[k + ((edge + 1) % 3)]], 2 * (k + edge));
    const none = { index: -1, amount: 0 }, { image, relief, openness } = part;
    return {
      array, count: part.indices.length, factor: part.factor, triangles: buffer(part.indices), wires: buffer(wires),
      image: part.uvs ? image : none, relief: part.uvs && part.tangents ? relief : none,
      openness: part.uvs ? openness : none,
    };
  }

  draw(view, width, height) {
    const gl = this.gl, at = this.at;
    const { camera, eye } = cameraOf(view, this.centre, this.radius, width / height);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0); // the page shows through
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    // wires lie on the surface, not in it; without them an offset would let far sides shine through at the outline
    gl.polygonOffset(1, 1);
    if (view.mode === WIRES) gl.enable(gl.POLYGON_OFFSET_FILL);
    else gl.disable(gl.POLYGON_OFFSET_FILL);
    gl.useProgram(this.program);
    gl.uniformMatrix4fv(at.camera, false, camera);
    gl.uniformMatrix3fv(at.eye, false, eye);
    gl.uniform3f(at.up, eye[3], eye[4], eye[5]);
    gl.vertexAttrib4f(2, 1, 1, 1, 1); // for parts without colours
    gl.uniform1i(at.picture, PICTURE);
    gl.uniform1i(at.relief, RELIEF);
    gl.uniform1i(at.openness, OPENNESS);
    // binds a map to its unit; how much of it is to be seen, 0 while it is not there
    const bound = (unit, { index, amount }) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, this.textures[index] || null);
      return this.textures[index] ? amount : 0;
    };
    for (const part of this.parts) {
      gl.bindVertexArray(part.array);
      gl.uniform1i(at.pictured, bound(PICTURE, part.image) ? 1 : 0);
      gl.uniform1f(at.reliefScale, bound(RELIEF, part.relief));
      gl.uniform1f(at.opennessStrength, bound(OPENNESS, part.openness));
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

// World to clip (4 x 4) and the directions of the view (3 x 3), column by column.
function cameraOf({ azimuth, elevation, zoom }, centre, radius, aspect) {
  const back = [Math.sin(azimuth) * Math.cos(elevation), Math.sin(elevation), Math.cos(azimuth) * Math.cos(elevation)];
  const right = [Math.cos(azimuth), 0, -Math.sin(azimuth)];
  const up = crossed(back, right);
  const scale = 1 / Math.tan(FOV / 2);
  const narrow = Math.min(1, aspect); // a picture higher than wide sees less sideways
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
  const eye = [right[0], up[0], back[0], right[1], up[1], back[1], right[2], up[2], back[2]];
  return { camera: multiplied(projection, view), eye };
}

// Colours as sRGB, so that the card blends linear light; glTF's first row is the upper one, as in WebGL without flipping.
function texture(gl, bitmap, coloured) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.texImage2D(gl.TEXTURE_2D, 0, coloured ? gl.SRGB8_ALPHA8 : gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  return made;
}
