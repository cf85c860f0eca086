// WebGL renderer of 3D Gaussians read by glb.js, with the conventions of our rasteriser: EWA projection, compositing in
// sRGB from back to front.
"use strict";

const SPLAT_TEXELS = 7; // of a Gaussian: position and opacity, quaternion, scale, four harmonics
const SPLATS_PER_ROW = 256;

const SPLAT_VERTEX = `#version 300 es
  precision highp float;
  layout(location = 0) in uint index;
  uniform highp sampler2D data;
  uniform mat4 camera;   // world to clip
  uniform mat3 rotation; // world to view, directions
  uniform vec3 centre;   // orbited point
  uniform float distance, focal; // of the camera to it; focal length in pixels
  uniform vec2 viewport;
  out vec3 colour;
  out vec3 conic;
  out float opacity;
  out vec2 offset; // pixels from the centre
  vec4 part(int k) {
    int row = int(index) / ${SPLATS_PER_ROW}, column = int(index) % ${SPLATS_PER_ROW};
    return texelFetch(data, ivec2(column * ${SPLAT_TEXELS} + k, row), 0);
  }
  void main() {
    vec4 first = part(0), q = part(1);
    vec3 position = first.xyz, scale = part(2).xyz, view = rotation * (position - centre) - vec3(0, 0, distance);
    gl_Position = camera * vec4(position, 1.0);
    opacity = first.w;
    float depth = -view.z, reach = 2.0 * log(255.0 * opacity);
    if (depth <= 0.0 || reach <= 0.0) { gl_Position = vec4(0, 0, 2, 1); return; } // outside of the clip volume
    vec3 direction = normalize(view * rotation); // from the camera, in the world
    colour = 0.5 + 0.28209479 * part(3).rgb
      + 0.48860251 * (-direction.y * part(4).rgb + direction.z * part(5).rgb - direction.x * part(6).rgb);
    colour = clamp(colour, 0.0, 1.0);
    mat3 axes = mat3(
      1.0 - 2.0 * (q.y * q.y + q.z * q.z), 2.0 * (q.x * q.y + q.w * q.z), 2.0 * (q.x * q.z - q.w * q.y),
      2.0 * (q.x * q.y - q.w * q.z), 1.0 - 2.0 * (q.x * q.x + q.z * q.z), 2.0 * (q.y * q.z + q.w * q.x),
      2.0 * (q.x * q.z + q.w * q.y), 2.0 * (q.y * q.z - q.w * q.x), 1.0 - 2.0 * (q.x * q.x + q.y * q.y));
    mat3 turned = rotation * axes * mat3(scale.x, 0, 0, 0, scale.y, 0, 0, 0, scale.z);
    vec2 limit = 0.65 * viewport / focal, slope = clamp(view.xy / depth, -limit, limit);
    mat3 rows = transpose(turned);
    vec3 x = focal / depth * (rows * vec3(1, 0, slope.x)), y = focal / depth * (rows * vec3(0, 1, slope.y));
    float xx = dot(x, x) + 0.3, xy = dot(x, y), yy = dot(y, y) + 0.3; // pixels; 0.3 is the usual dilation
    conic = vec3(yy, -xy, xx) / (xx * yy - xy * xy);
    vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
    offset = corner * sqrt(reach * vec2(xx, yy));
    gl_Position.xy += offset * 2.0 / viewport * gl_Position.w;
  }`;

const SPLAT_FRAGMENT = `#version 300 es
  precision highp float;
  in vec3 colour;
  in vec3 conic;
  in float opacity;
  in vec2 offset;
  out vec4 pixel;
  void main() {
    float power = 0.5 * (conic.x * offset.x * offset.x + conic.z * offset.y * offset.y) + conic.y * offset.x * offset.y;
    float alpha = min(opacity * exp(-power), 0.99);
    if (alpha < 1.0 / 255.0) discard;
    pixel = vec4(colour * alpha, alpha);
  }`;

class SplatScene {
  constructor(gl, { splats }) {
    this.gl = gl;
    this.positions = splats.positions;
    Object.assign(this, boundingSphere([splats]));
    this.count = splats.opacities.length;
    this.keys = new Uint16Array(this.count);
    this.order = new Uint32Array(this.count);
    this.ready = Promise.resolve();
  }

  build({ splats }) {
    const gl = this.gl, rows = Math.ceil(this.count / SPLATS_PER_ROW);
    this.program = linkProgram(gl, SPLAT_VERTEX, SPLAT_FRAGMENT);
    const names = ["camera", "rotation", "centre", "distance", "focal", "viewport"];
    this.uniforms = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(this.program, name)]));
    const texels = new Float32Array(rows * SPLATS_PER_ROW * SPLAT_TEXELS * 4);
    for (let k = 0; k < this.count; k++) {
      const at = k * SPLAT_TEXELS * 4, put = (texel, values, width) =>
        texels.set(values.subarray(k * width, (k + 1) * width), at + 4 * texel);
      put(0, splats.positions, 3);
      texels[at + 3] = splats.opacities[k];
      put(1, splats.quaternions, 4);
      put(2, splats.scales, 3);
      splats.harmonics.forEach((values, degree) => put(3 + degree, values, 3));
    }
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, SPLATS_PER_ROW * SPLAT_TEXELS, rows, 0, gl.RGBA, gl.FLOAT, texels);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST); // float textures have no filter
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    this.array = gl.createVertexArray();
    gl.bindVertexArray(this.array);
    this.buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, this.order.byteLength, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(0, 1);
  }

  // Sort the Gaussians from back to front: a counting sort of their depths in 65,536 steps.
  sort([, , x, , , y, , , z]) {
    const { positions, keys, order, centre, radius } = this, starts = new Uint32Array(65537);
    for (let k = 0; k < this.count; k++) {
      const nearness = x * (positions[3 * k] - centre[0]) + y * (positions[3 * k + 1] - centre[1])
        + z * (positions[3 * k + 2] - centre[2]);
      keys[k] = 32767.5 * (1 + nearness / radius);
      starts[keys[k] + 1]++;
    }
    for (let key = 0; key < 65536; key++) starts[key + 1] += starts[key];
    for (let k = 0; k < this.count; k++) order[starts[keys[k]]++] = k;
  }

  draw(view, width, height) {
    const gl = this.gl, at = this.uniforms;
    const { camera, rotation, distance } = cameraMatrices(view, this.centre, this.radius, width / height);
    this.sort(rotation);
    startFrame(gl, width, height);
    gl.disable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.uniformMatrix4fv(at.camera, false, camera);
    gl.uniformMatrix3fv(at.rotation, false, rotation);
    gl.uniform3fv(at.centre, this.centre);
    gl.uniform1f(at.distance, distance);
    gl.uniform1f(at.focal, height / 2 / Math.tan(FOV / 2));
    gl.uniform2f(at.viewport, width, height);
    gl.bindVertexArray(this.array);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, this.order);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.count);
  }
}
