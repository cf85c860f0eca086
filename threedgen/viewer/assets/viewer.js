// 3D view of the GLB embedded in this page; redrawn only after a change.
"use strict";

const START = { azimuth: 0.5, elevation: 0.26, zoom: 1 }; // glTF: +y is up, the front faces +z

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
  link.href = URL.createObjectURL(new Blob([bytes], { type: "model/gltf-binary" })); // long data: links fail
  const gl = canvas.getContext("webgl2", { antialias: true });
  if (!gl) return say("The 3D view needs WebGL 2, which this browser does not support. See the images below.");
  try {
    const asset = readGlb(bytes);
    const scene = new Scene(gl, asset);
    const view = { ...START, mode: 0 };
    const build = () => {
      scene.build(asset);
      scene.ready.then(() => redraw());
    };
    build();
    const redraw = makeRedraw(canvas, (width, height) => scene.draw(view, width, height), build);
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
  group.hidden = false;
  for (const button of buttons) {
    button.addEventListener("click", () => {
      view.mode = Number(button.dataset.mode);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      redraw();
    });
  }
}
