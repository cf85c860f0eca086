// A panorama from inside: each pixel's ray is looked up in the equirectangular picture of the page.
// Angles in radians: yaw to the right, pitch upwards; rays have x to the right, y up, z towards the picture's middle.
"use strict";

const AHEAD = { yaw: 0, pitch: 0, fov: 1.1 }; // fov from top to bottom
const NARROWEST = 0.2, WIDEST = 1.6;

// The rays of the picture's corners, for a triangle strip: left and right below, left and right above.
function corners({ yaw, pitch, fov }, aspect) {
  const up = Math.tan(fov / 2), right = up * aspect;
  return [[-right, -up], [right, -up], [-right, up], [right, up]].map(([x, y]) => {
    const tiltedY = y * Math.cos(pitch) + Math.sin(pitch), tiltedZ = Math.cos(pitch) - y * Math.sin(pitch);
    return [x * Math.cos(yaw) + tiltedZ * Math.sin(yaw), tiltedY, tiltedZ * Math.cos(yaw) - x * Math.sin(yaw)];
  });
}

// The place of a ray in the picture, which reaches `high` above and below the horizon: from the left and from above, in
// [0, 1]. The shader does the same.
function place([x, y, z], high) {
  return [Math.atan2(x, z) / (2 * Math.PI) + 0.5, 0.5 - Math.atan2(y, Math.hypot(x, z)) / (2 * high)];
}

// The same view, or the nearest to it that shows nothing above or below the picture.
function limited({ yaw, pitch, fov }, high) {
  const opened = Math.max(NARROWEST, Math.min(WIDEST, 1.96 * high, fov));
  const most = Math.max(0, high - opened / 2);
  return { yaw, pitch: Math.max(-most, Math.min(most, pitch)), fov: opened };
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
  uniform sampler2D picture;
  uniform float high;
  out vec4 pixel;
  void main() {
    vec2 place = vec2(atan(ray.x, ray.z) / 6.283185307179586 + 0.5, 0.5 - atan(ray.y, length(ray.xz)) / (2.0 * high));
    pixel = vec4(texture(picture, place).rgb, 1.0);
  }`;

// The picture on the graphics card, made smaller if it is too large for it.
function upload(gl, image) {
  const most = gl.getParameter(gl.MAX_TEXTURE_SIZE), scale = Math.min(1, most / image.naturalWidth);
  let source = image;
  if (scale < 1) {
    source = document.createElement("canvas");
    source.width = Math.floor(image.naturalWidth * scale);
    source.height = Math.max(1, Math.round(image.naturalHeight * scale));
    source.getContext("2d").drawImage(image, 0, 0, source.width, source.height);
  }
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, source);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR); // with mipmaps there would be a seam behind
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.REPEAT);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
}

// A function that draws a view, for a picture width x height pixels.
function painter(gl, image, high) {
  const program = linked(gl, VERTEX, FRAGMENT);
  gl.useProgram(program);
  gl.uniform1f(gl.getUniformLocation(program, "high"), high);
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

async function enter() {
  const canvas = document.getElementById("view"), stage = document.getElementById("stage");
  const image = document.getElementById("picture"), message = document.getElementById("message");
  const gl = canvas.getContext("webgl2");
  if (!gl) return;
  await image.decode();
  stage.hidden = false;
  message.hidden = true;
  const high = Math.PI * image.naturalHeight / image.naturalWidth;
  const view = limited(AHEAD, high);
  let paint = painter(gl, image, high);
  const build = () => { paint = painter(gl, image, high); };
  const draw = drawer(canvas, (width, height) => paint(view, width, height), build);
  const change = (changes) => {
    Object.assign(view, limited({ ...view, ...changes }, high));
    draw();
  };
  listen(canvas, {
    turn: (across, down) => {
      const pixel = 2 * Math.tan(view.fov / 2) / canvas.clientHeight; // the picture follows the finger
      change({ yaw: view.yaw - across * pixel, pitch: view.pitch + down * pixel });
    },
    nearer: (factor) => change({ fov: view.fov / factor }),
    reset: () => change(AHEAD),
  });
}

if (typeof document !== "undefined") {
  enter().catch((error) => {
    document.getElementById("stage").hidden = true;
    const message = document.getElementById("message");
    message.textContent = `Looking around does not work here: ${error.message}. The picture below shows everything.`;
    message.hidden = false;
  });
}
