// The turntable: the film if it plays, else the sides of views.png one after the other.
"use strict";

(() => {
  const film = document.getElementById("film");
  const frames = document.getElementById("frames");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (still && film) film.pause();

  // views.png: rows of at most four equal pictures, two pixels of paper around each
  const GAP = 2, ROW = 4, MILLISECONDS = 350;

  const showFrames = async () => {
    const sheet = document.getElementById("views");
    await sheet.decode();
    const count = Number(frames.dataset.count), columns = Math.min(ROW, count), rows = Math.ceil(count / columns);
    const width = Math.floor((sheet.naturalWidth - GAP) / columns) - GAP;
    const height = Math.floor((sheet.naturalHeight - GAP) / rows) - GAP;
    frames.width = width;
    frames.height = height;
    if (film) film.hidden = true;
    frames.hidden = false;
    const context = frames.getContext("2d");
    let side = 0;
    const next = () => {
      const x = GAP + (side % columns) * (width + GAP), y = GAP + Math.floor(side / columns) * (height + GAP);
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
