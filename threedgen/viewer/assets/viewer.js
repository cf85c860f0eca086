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
    const build = () => {
      scene.build(asset);
      scene.ready.then(() => draw());
    };
    build();
    const draw = drawer(canvas, (width, height) => scene.draw(view, width, height), build);
    draw();
    obey(canvas, view, draw);
    offerModes(view, draw);
    say("");
  } catch (error) {
    say(`The asset cannot be shown: ${error.message}. The file itself can be saved below.`);
  }
})();

// --- how it is turned

function obey(canvas, view, draw) {
  listen(canvas, {
    turn: (across, down) => {
      const half = canvas.clientHeight / Math.PI; // a drag over the whole height is half a turn
      view.azimuth -= across / half;
      view.elevation = Math.max(-1.5, Math.min(1.5, view.elevation + down / half));
      draw();
    },
    nearer: (factor) => {
      view.zoom = Math.max(0.4, Math.min(8, view.zoom * factor));
      draw();
    },
    reset: () => { Object.assign(view, START); draw(); },
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
