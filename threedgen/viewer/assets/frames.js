// The turntable: the film if it plays, else the sides of views.png one after the other.
"use strict";

(() => {
  const film = document.getElementById("film");
  const frames = document.getElementById("frames");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (film) {
    film.controls = false; // they hide a third of so small a film; without scripts they stay
    film.tabIndex = 0;
    const toggle = () => (film.paused ? film.play() : film.pause());
    film.addEventListener("click", toggle);
    film.addEventListener("keydown", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
    if (still) film.pause();
  }

  const MILLISECONDS = 350;

  const showFrames = async () => {
    const sheet = document.getElementById("views");
    await sheet.decode();
    // rows of equal pictures with a gap around each
    const [count, columns, gap] = ["count", "columns", "gap"].map((name) => Number(frames.dataset[name]));
    const width = Math.floor((sheet.naturalWidth - gap) / columns) - gap;
    const height = Math.floor((sheet.naturalHeight - gap) / Math.ceil(count / columns)) - gap;
    frames.width = width;
    frames.height = height;
    if (film) film.hidden = true;
    frames.hidden = false;
    const context = frames.getContext("2d");
    let side = 0;
    const next = () => {
      const x = gap + (side % columns) * (width + gap), y = gap + Math.floor(side / columns) * (height + gap);
      context.drawImage(sheet, x, y, width, height, 0, 0, width, height);
      side = (side + 1) % count;
    };
    next();
    if (!still) setInterval(next, MILLISECONDS);
    else frames.addEventListener("click", next);
  };

  if (!frames) return;
  if (!film || film.error) showFrames();
  else film.addEventListener("error", showFrames, { once: true });
})();
