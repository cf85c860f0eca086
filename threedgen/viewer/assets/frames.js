// Turntable: the video if it plays, else the images of views.png one after the other.
"use strict";

(() => {
  const film = document.getElementById("film");
  const frames = document.getElementById("frames");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (film) {
    film.controls = false; // they hide a third of this small video; without scripts they stay
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

  const FRAME_MILLISECONDS = 350;

  const showFrames = async () => {
    const sheet = document.getElementById("views");
    await sheet.decode();
    // rows of images of equal size with a gap around each
    const [count, columns, gap] = ["count", "columns", "gap"].map((name) => Number(frames.dataset[name]));
    const width = Math.floor((sheet.naturalWidth - gap) / columns) - gap;
    const height = Math.floor((sheet.naturalHeight - gap) / Math.ceil(count / columns)) - gap;
    frames.width = width;
    frames.height = height;
    if (film) film.hidden = true;
    frames.hidden = false;
    const context = frames.getContext("2d");
    let index = 0;
    const next = () => {
      const x = gap + (index % columns) * (width + gap), y = gap + Math.floor(index / columns) * (height + gap);
      context.drawImage(sheet, x, y, width, height, 0, 0, width, height);
      index = (index + 1) % count;
    };
    next();
    if (!still) setInterval(next, FRAME_MILLISECONDS);
    else frames.addEventListener("click", next);
  };

  if (!frames) return;
  if (!film || film.error) showFrames();
  else film.addEventListener("error", showFrames, { once: true });
})();
