// 3D view of the GLB files embedded in this page, a mesh or 3D Gaussians or both; redrawn only after a change.
"use strict";

const START = { azimuth: 0.5, elevation: 0.26, zoom: 1 }; // glTF: +y is up, the front faces +z
const SPLAT_MODE = 5;

(() => {
  const canvas = document.getElementById("view");
  if (!canvas) return;
  const message = document.getElementById("message");
  const say = (text) => {
    message.textContent = text;
    message.hidden = !text;
    canvas.hidden = Boolean(text);
  };
  const files = [...document.querySelectorAll("a.model")].map((link) => {
    const address = link.getAttribute("href");
    const bytes = Uint8Array.from(atob(address.slice(address.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
    link.href = URL.createObjectURL(new Blob([bytes], { type: "model/gltf-binary" })); // long data: links fail
    return bytes;
  });
  const gl = canvas.getContext("webgl2", { antialias: true });
  if (!gl) return say("The 3D view needs WebGL 2, which this browser does not support. See the images below.");
  try {
    const assets = files.map(readGlb);
    const scenes = assets.map((asset) => (asset.splats ? new SplatScene(gl, asset) : new Scene(gl, asset)));
    const [splats, mesh] = [true, false].map((kind) => scenes.find((scene) => scene instanceof SplatScene === kind));
    const view = { ...START, mode: splats ? SPLAT_MODE : 0 };
    const build = () => {
      scenes.forEach((scene, k) => scene.build(assets[k]));
      for (const scene of scenes) scene.ready.then(() => redraw());
    };
    build();
    const draw = (...size) => (view.mode === SPLAT_MODE ? splats : mesh).draw(view, ...size);
    const redraw = makeRedraw(canvas, draw, build);
    redraw();
    handleGestures(canvas, view, redraw);
    handleModes(view, redraw);
    say("");
  } catch (error) {
    say(`The asset cannot be shown: ${error.message}. You can still download the file below.`);
  }
})();

// --- controls

function handleGestures(canvas, view, redraw) {
  listen(canvas, {
    rotate: (right, down) => {
      const scale = canvas.clientHeight / Math.PI; // pixels per radian: a drag over the whole height is half a turn
      view.azimuth -= right / scale;
      view.elevation = Math.max(-1.5, Math.min(1.5, view.elevation + down / scale));
      redraw();
    },
    zoom: (factor) => {
      view.zoom = Math.max(0.4, Math.min(8, view.zoom * factor));
      redraw();
    },
    reset: () => { Object.assign(view, START); redraw(); },
  });
}

function handleModes(view, redraw) {
  const group = document.getElementById("modes"), buttons = [...group.querySelectorAll("button")];
  group.hidden = buttons.length < 2;
  const press = (mode) => {
    view.mode = mode;
    for (const button of buttons) button.setAttribute("aria-pressed", String(Number(button.dataset.mode) === mode));
    redraw();
  };
  for (const button of buttons) button.addEventListener("click", () => press(Number(button.dataset.mode)));
  press(view.mode);
}
