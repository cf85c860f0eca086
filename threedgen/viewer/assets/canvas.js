// Helpers of all WebGL canvases: shader programs and redraws on demand.
"use strict";

function linkProgram(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(gl.getProgramInfoLog(program) || "the shader program could not be linked");
  }
  return program;
}

// Return a function that schedules draw(width, height), in pixels, for the next animation frame, at most once a frame.
// It is also called when the canvas is resized, and after `build` when the WebGL context was lost and restored.
function makeRedraw(canvas, draw, build) {
  let scheduled = false;
  const redraw = () => {
    scheduled = false;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    draw(width, height);
    // number of drawn frames, for tests
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
  };
  const schedule = () => {
    if (!scheduled) requestAnimationFrame(redraw);
    scheduled = true;
  };
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => { build(); schedule(); });
  new ResizeObserver(schedule).observe(canvas);
  return schedule;
}
