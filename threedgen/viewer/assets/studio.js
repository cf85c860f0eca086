// Studio page: prompt check while typing, job queue, 3D view of finished assets. Foreign text is never parsed as HTML.
"use strict";

(() => {
  const part = (id) => document.getElementById(id);
  const prompt = part("prompt"), seed = part("seed"), shown = new Map();
  let over = -1, lastRequest = 0;

  const element = (tag, text, name) => Object.assign(document.createElement(tag), { textContent: text, className: name || "" });
  const say = (place, text) => {
    place.textContent = text;
    place.hidden = !text;
  };

  async function post(name, body) {
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await fetch(name, { method: "POST", headers, body: JSON.stringify(body) });
      say(part("problem"), answer.ok ? "" : (await answer.json()).error);
      return answer.ok;
    } catch {
      return false; // poll reports a lost connection
    }
  }

  // --- the prompt

  const setPrompt = (text) => {
    prompt.value = text;
    prompt.focus();
    checkPrompt();
  };

  const chip = (text, hint, action) => {
    const button = element("button", text, "chip");
    button.type = "button";
    button.title = hint;
    button.addEventListener("click", action);
    return button;
  };

  function replaceWord(word, near) {
    const at = prompt.value.toLowerCase().indexOf(word.toLowerCase());
    setPrompt(at < 0 ? prompt.value : prompt.value.slice(0, at) + near + prompt.value.slice(at + word.length));
  }

  function appendNoun(typed, noun) {
    const text = prompt.value.slice(0, prompt.value.length - typed.length);
    setPrompt((text.trim() ? text : "a ").replace(/(\S)$/, "$1 ") + noun);
  }

  async function checkPrompt() {
    const request = ++lastRequest;
    let found;
    try {
      found = await (await fetch(`words?prompt=${encodeURIComponent(prompt.value)}`)).json();
    } catch {
      return;
    }
    if (request !== lastRequest || found.error) return; // outdated: the prompt has changed
    part("words").replaceChildren(...found.words.flatMap(({ word, known, near }) => [
      Object.assign(element("span", word, known || word === found.typed ? "word" : "word unknown"), { title: known ? "known" : "unknown word: no effect" }),
      ...near.map((other) => chip(`→ ${other}`, `replace ${word}`, () => replaceWord(word, other))),
    ]));
    const lead = found.nouns.length ? [element("span", found.typed ? "Known words" : "Try", "hint")] : [];
    part("nouns").replaceChildren(...lead, ...found.nouns.map((noun) => chip(noun, "known word", () => appendNoun(found.typed, noun))));
    part("notes").replaceChildren(...found.notes.map((note) => element("li", note)));
  }

  let wait = 0;
  prompt.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(checkPrompt, 120);
    say(part("problem"), "");
  });

  part("order").addEventListener("submit", (event) => {
    event.preventDefault();
    post("jobs", { prompt: prompt.value, seed: Number(seed.value) });
  });

  // --- the queue

  const DROP = { waiting: "Remove", running: "Stop", stopping: "Stop at once" };
  const AGAIN = { interrupted: "Continue", failed: "Try again" };

  function item(job) {
    const place = part("job").content.firstElementChild.cloneNode(true);
    const does = {
      show: () => show(job.name, job.prompt),
      again: () => post("jobs", { prompt: job.prompt, seed: job.seed }),
      drop: () => post("drop", { number: job.number }),
    };
    for (const button of place.querySelectorAll("button")) button.addEventListener("click", does[button.dataset.does]);
    place.querySelector(".prompt").textContent = job.prompt;
    part("jobs").append(place);
    return { place, state: "", picture: "" };
  }

  function update(entry, job) {
    const find = (what) => entry.place.querySelector(what), live = ["running", "stopping"].includes(job.state);
    const { phase, done, total, details } = job.progress, bar = find("progress"), picture = find("img");
    const status = phase ? [`${phase}, ${done} of ${total}`, details].filter(Boolean).join(", ") : "starting";
    find(".state").textContent = job.state;
    find(".state").className = `state ${job.state}`;
    find(".told").textContent = live ? status : job.seed ? `seed ${job.seed}` : "";
    say(find(".problem"), job.error);
    bar.hidden = !live;
    if (phase) Object.assign(bar, { max: Number(total), value: Number(done) });
    picture.hidden = !live || !job.picture;
    if (job.picture && job.picture !== entry.picture) picture.src = encodeURI(job.picture);
    find("[data-does=show]").hidden = live || !job.report;
    say(find("[data-does=again]"), AGAIN[job.state] || "");
    find("[data-does=drop]").textContent = DROP[job.state] || "Clear";
    if (job.state === "finished" && job.report && entry.state !== "finished" && entry.state !== "new") show(job.name, job.prompt);
    Object.assign(entry, { state: job.state, picture: job.picture });
  }

  let first = true;
  function showJobs(state) {
    const numbers = state.jobs.map((job) => job.number);
    for (const [number, entry] of shown) {
      if (numbers.includes(number)) continue;
      entry.place.remove();
      shown.delete(number);
    }
    for (const job of state.jobs) {
      if (!shown.has(job.number)) shown.set(job.number, { ...item(job), state: first ? "new" : "" });
      update(shown.get(job.number), job);
    }
    first = false;
    if (state.over !== over) {
      over = state.over;
      loadCards();
    }
  }

  async function poll() {
    const answer = await fetch("state").catch(() => null);
    part("gone").hidden = Boolean(answer && answer.ok);
    if (answer && answer.ok) showJobs(await answer.json());
    setTimeout(poll, 1000);
  }

  // --- finished runs

  function show(name, prompt) {
    part("shown").hidden = false;
    part("shown-prompt").textContent = prompt;
    part("asset").src = `${encodeURI(name)}/asset`;
    part("report").href = `${encodeURI(name)}/report.html`;
    part("shown").scrollIntoView({ behavior: "smooth", block: "start" });
  }

  async function loadCards() {
    try {
      part("cards").innerHTML = await (await fetch("cards")).text(); // the server escapes every value
    } catch {
      return;
    }
    part("empty").hidden = part("cards").childElementCount > 0;
  }

  part("cards").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    show(decodeURI(link.getAttribute("href")).replace(/^\.\//, "").replace(/\/[^/]*$/, ""), link.querySelector(".prompt").textContent);
  });

  checkPrompt();
  poll();
})();
