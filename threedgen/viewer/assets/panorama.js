// Panorama viewer: looks up the ray of each pixel in the equirectangular image of the page.
// Angles in radians: yaw to the right, pitch upwards. Rays: x right, y up, z towards the centre of the image.
"use strict";

const INITIAL_VIEW = { yaw: 0, pitch: 0, fov: 1.1 }; // vertical fov
const MIN_FOV = 0.2, MAX_FOV = 1.6;

// Return the rays of the canvas corners in triangle strip order: bottom left, bottom right, top left, top right.
function corners({ yaw, pitch, fov }, aspect) {
  const up = Math.tan(fov / 2), right = up * aspect;
  return [[-right, -up], [right, -up], [-right, up], [right, up]].map(([x, y]) => {
    const tiltedY = y * Math.cos(pitch) + Math.sin(pitch), tiltedZ = Math.cos(pitch) - y * Math.sin(pitch);
    return [x * Math.cos(yaw) + tiltedZ * Math.sin(yaw), tiltedY, tiltedZ * Math.cos(yaw) - x * Math.sin(yaw)];
  });
}

// Return the image coordinates (u from the left, v from the top, in [0, 1]) of a ray. The image covers elevations from
// -maxElevation to maxElevation. The shader does the same.
function rayToUv([x, y, z], maxElevation) {
  return [Math.atan2(x, z) / (2 * Math.PI) + 0.5, 0.5 - Math.atan2(y, Math.hypot(x, z)) / (2 * maxElevation)];
}

// Return the nearest view that shows nothing above or below the image.
function clampView({ yaw, pitch, fov }, maxElevation) {
  const clampedFov = Math.max(MIN_FOV, Math.min(MAX_FOV, 1.96 * maxElevation, fov));
  const maxPitch = Math.max(0, maxElevation - clampedFov / 2);
  return { yaw, pitch: Math.max(-maxPitch, Math.min(maxPitch, pitch)), fov: clampedFov };
}

const VERTEX = `#version 300 es
  layout(location = 0) in vec3 corner;
  out vec3 ray;
  void main() {
    ray = corner;
    gl_Position = vec4(float(gl_VertexID & 1) * 2.0 - 1.0, float(gl_VertexID >> 1) * 2.0 - 1.0, 0.0, 1.0);
  }`;

const FRAGMENT = `#version 300 es
  precision highp float;
  in vec3 ray;
  uniform sampler2D panorama;
  uniform float maxElevation;
  out vec4 pixel;
  void main() {
    float elevation = atan(ray.y, length(ray.xz));
    vec2 uv = vec2(atan(ray.x, ray.z) / 6.283185307179586 + 0.5, 0.5 - elevation / (2.0 * maxElevation));
    pixel = vec4(texture(panorama, uv).rgb, 1.0);
  }`;

// Upload the image as a texture, downsized to the maximum texture size.
function upload(gl, image) {
  const maxSize = gl.getParameter(gl.MAX_TEXTURE_SIZE), scale = Math.min(1, maxSize / image.naturalWidth);
  let source = image;
  if (scale < 1) {
    source = document.createElement("canvas");
    source.width = Math.floor(image.naturalWidth * scale);
    source.height = Math.max(1, Math.round(image.naturalHeight * scale));
    source.getContext("2d").drawImage(image, 0, 0, source.width, source.height);
  }
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, source);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR); // mipmaps would show a seam at u = 0
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.REPEAT);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
}

// Return a function paint(view, width, height) that draws a view on a canvas of this size in pixels.
function makePainter(gl, image, maxElevation) {
  const program = linkProgram(gl, VERTEX, FRAGMENT);
  gl.useProgram(program);
  gl.uniform1f(gl.getUniformLocation(program, "maxElevation"), maxElevation);
  upload(gl, image);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.enableVertexAttribArray(0);
  gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
  return (view, width, height) => {
    gl.viewport(0, 0, width, height);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(corners(view, width / height).flat()), gl.DYNAMIC_DRAW);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  };
}

async function start() {
  const canvas = document.getElementById("view"), stage = document.getElementById("stage");
  const image = document.getElementById("picture"), message = document.getElementById("message");
  const gl = canvas.getContext("webgl2");
  if (!gl) return;
  await image.decode();
  stage.hidden = false;
  message.hidden = true;
  const maxElevation = Math.PI * image.naturalHeight / image.naturalWidth;
  const view = clampView(INITIAL_VIEW, maxElevation);
  let paint = makePainter(gl, image, maxElevation);
  const build = () => { paint = makePainter(gl, image, maxElevation); };
  const redraw = makeRedraw(canvas, (width, height) => paint(view, width, height), build);
  const change = (changes) => {
    Object.assign(view, clampView({ ...view, ...changes }, maxElevation));
    redraw();
  };
  listen(canvas, {
    rotate: (right, down) => {
      const pixel = 2 * Math.tan(view.fov / 2) / canvas.clientHeight; // radians per pixel at the centre
      change({ yaw: view.yaw - right * pixel, pitch: view.pitch + down * pixel });
    },
    zoom: (factor) => change({ fov: view.fov / factor }),
    reset: () => change(INITIAL_VIEW),
  });
}

if (typeof document !== "undefined") {
  start().catch((error) => {
    document.getElementById("stage").hidden = true;
    const message = document.getElementById("message");
    message.textContent = `The interactive view failed: ${error.message}. The image below shows the whole panorama.`;
    message.hidden = false;
  });
}
