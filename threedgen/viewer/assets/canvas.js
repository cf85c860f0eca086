// What every canvas of the pages needs: a shader program, and a picture when something has changed.
"use strict";

function linked(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(gl.getProgramInfoLog(program) || "the graphics card refused");
  }
  return program;
}

// A function that has `draw` make one picture, width x height pixels, however often it is called before the screen's
// next. It is called when the canvas gets another size, and `build`, when the graphics card has forgotten everything.
function drawer(canvas, draw, build) {
  let asked = false;
  const now = () => {
    asked = false;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    draw(width, height);
    // how many pictures there were, for whoever waits for one
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
  };
  const soon = () => {
    if (!asked) requestAnimationFrame(now);
    asked = true;
  };
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => { build(); soon(); });
  new ResizeObserver(soon).observe(canvas);
  return soon;
}
