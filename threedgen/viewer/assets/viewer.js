// The asset in 3D, from the GLB inside this page: turned by mouse, finger and keys, drawn only when something changed.
"use strict";

const START = { azimuth: 0.5, elevation: 0.26, zoom: 1 }; // glTF: up is +y, the front looks along +z

(() => {
  const canvas = document.getElementById("view");
  if (!canvas) return;
  const message = document.getElementById("message");
  const link = document.getElementById("mesh");
  const say = (text) => {
    message.textContent = text;
    message.hidden = !text;
    canvas.hidden = Boolean(text);
  };
  const address = link.getAttribute("href");
  const bytes = Uint8Array.from(atob(address.slice(address.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  link.href = URL.createObjectURL(new Blob([bytes], { type: "model/gltf-binary" })); // data: is cut short by some
  const gl = canvas.getContext("webgl2", { antialias: true });
  if (!gl) return say("This browser does not offer WebGL 2, so the asset cannot be turned here. The pictures show it.");
  try {
    const asset = readGlb(bytes);
    const scene = new Scene(gl, asset);
    const view = { ...START, mode: 0 };
    const draw = drawer(canvas, scene, view);
    const build = () => {
      scene.build(asset);
      scene.ready.then(draw);
      draw();
    };
    build();
    listen(canvas, view, draw);
    offerModes(view, draw);
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", build);
    new ResizeObserver(draw).observe(canvas);
    say("");
  } catch (error) {
    say(`The asset cannot be shown: ${error.message}. The file itself can be saved below.`);
  }
})();

// --- when it is drawn

// A function that asks for one picture, however often it is called before the screen's next.
function drawer(canvas, scene, view) {
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
    scene.draw(view, width, height);
    // how many pictures there were, for whoever waits for one
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn || 0) + 1);
  };
  return () => {
    if (!asked) requestAnimationFrame(now);
    asked = true;
  };
}

// --- how it is turned

function listen(canvas, view, draw) {
  const turn = (across, up) => {
    view.azimuth -= across;
    view.elevation = Math.max(-1.5, Math.min(1.5, view.elevation + up));
    draw();
  };
  const zoom = (factor) => {
    view.zoom = Math.max(0.4, Math.min(8, view.zoom * factor));
    draw();
  };
  const reset = () => { Object.assign(view, START); draw(); };
  const fingers = new Map();
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y) || 1;
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const from = fingers.get(event.pointerId);
    if (!from) return;
    const before = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (before) return zoom(spread() / before);
    const half = canvas.clientHeight / Math.PI; // a drag over the whole height is half a turn
    if (fingers.size === 1) turn((event.clientX - from.x) / half, (event.clientY - from.y) / half);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1);
    zoom(Math.exp(-Math.max(-200, Math.min(200, pixels)) / 500));
  }, { passive: false });
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("keydown", (event) => {
    const step = 0.12;
    const keys = {
      ArrowLeft: () => turn(step, 0), ArrowRight: () => turn(-step, 0), ArrowUp: () => turn(0, step),
      ArrowDown: () => turn(0, -step), "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15),
      Home: reset,
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function offerModes(view, draw) {
  const group = document.getElementById("modes"), buttons = [...group.querySelectorAll("button")];
  group.hidden = false;
  for (const button of buttons) {
    button.addEventListener("click", () => {
      view.mode = Number(button.dataset.mode);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
  }
}
