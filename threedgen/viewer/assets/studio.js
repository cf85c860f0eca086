// Studio page: prompt check while typing, job queue, 3D view of finished assets. Foreign text is never parsed as HTML.
"use strict";

(() => {
  const part = (id) => document.getElementById(id);
  const prompt = part("prompt"), seed = part("seed"), entries = new Map(), given = {};
  let over = -1, lastRequest = 0, vocabulary = {}, edited = "", listed = "";

  const element = (tag, text, name) => Object.assign(document.createElement(tag), { textContent: text, className: name || "" });
  const copy = (id) => part(id).content.firstElementChild.cloneNode(true);
  const run = (name, rest = "") => `api/v1/runs/${encodeURI(name)}${rest}`;
  const title = (text) => text || "from a file";
  const say = (place, text) => {
    place.textContent = text;
    place.hidden = !text;
  };

  // Return the answer to a request, or null after an error, which the page shows.
  async function send(method, name, body) {
    const file = body instanceof File;
    const headers = { "Content-Type": file ? "application/octet-stream" : "application/json" };
    try {
      const answer = await fetch(`api/v1/${name}`, { method, headers, body: file || !body ? body : JSON.stringify(body) });
      const text = await answer.text();
      const tree = text.startsWith("{") || text.startsWith("[") ? JSON.parse(text) : {};
      if (method !== "GET" || !answer.ok) say(part("problem"), answer.ok ? "" : tree.error || text);
      return answer.ok ? tree : null;
    } catch {
      return null; // the event stream reports a lost connection
    }
  }

  // --- the prompt

  const setPrompt = (text) => {
    prompt.value = text.replace(/\s+/g, " ").replace(/\ban?(?= )(?= [aeiou])/gi, "an").replace(/\ban(?= [^aeiou])/gi, "a").trim();
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

  // \b would take letters with accents as the end of a word.
  const whole = (word) => new RegExp(`(?<![\\p{L}\\p{M}\\p{N}])${word}(?![\\p{L}\\p{M}\\p{N}])`, "iu");
  const found = (words) => words.find((word) => whole(word).test(prompt.value));
  const replaceWord = (word, other) => setPrompt(prompt.value.normalize("NFKC").replace(whole(word), other));
  const nouns = () => Object.entries(vocabulary).flatMap(([name, words]) => (name in JOIN ? [] : words));
  const JOIN = {
    colours: (word, noun) => prompt.value.replace(whole(noun), `${word} ${noun}`),
    sizes: (word) => prompt.value.replace(/^(an? |the )?/i, `$1${word} `),
    accessories: (word) => `${prompt.value} wearing a ${word}`,
  };

  // Put a word of a category in place of a word of the same category, or where such a word belongs.
  function useWord(category, word) {
    const same = category in JOIN ? vocabulary[category] : nouns(), old = found(same), noun = found(nouns());
    if (old) return replaceWord(old, word);
    if (!(category in JOIN)) return setPrompt(`${prompt.value.trim() || "a"} ${word}`);
    setPrompt(noun ? JOIN[category](word, noun) : `${prompt.value.trim() || "a"} ${word}`);
  }

  function appendNoun(typed, noun) {
    const text = prompt.value.slice(0, prompt.value.length - typed.length);
    setPrompt(`${text.trim() || "a"} ${noun}`);
  }

  async function checkPrompt() {
    const request = ++lastRequest;
    const check = await send("GET", `words?prompt=${encodeURIComponent(prompt.value)}`);
    if (!check || request !== lastRequest) return; // outdated: the prompt has changed
    const uses = (material) => material && !given.mesh; // a mesh keeps its material
    const about = (known, material) => (known ? "has an effect" : uses(material) ? "sets the material" : "no effect");
    part("words").replaceChildren(...check.words.flatMap(({ word, known, near, material }) => [
      Object.assign(element("span", word, known || uses(material) || word === check.typed ? "word" : "word unknown"), { title: about(known, material) }),
      ...near.map((other) => chip(`→ ${other}`, `replace ${word}`, () => replaceWord(word, other))),
    ]));
    const lead = check.nouns.length ? [element("span", check.typed ? "Known words" : "Try", "hint")] : [];
    part("nouns").replaceChildren(...lead, ...check.nouns.map((noun) => chip(noun, "known word", () => appendNoun(check.typed, noun))));
    part("notes").replaceChildren(...check.notes.map((note) => element("li", note)));
  }

  part("browse").addEventListener("toggle", async () => {
    if (part("vocabulary").childElementCount) return;
    vocabulary = (await send("GET", "vocabulary")) || {};
    part("vocabulary").replaceChildren(...Object.entries(vocabulary).map(([category, words]) => {
      const group = element("fieldset", "", "chips");
      group.append(element("legend", category), ...words.map((word) => chip(word, `use ${word}`, () => useWord(category, word))));
      return group;
    }));
  });

  let wait = 0;
  prompt.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(checkPrompt, 120);
    say(part("problem"), "");
  });

  // --- orders

  // Return the options of an asset that a form sets.
  function assetOptions(form) {
    const data = new FormData(form), formats = data.getAll("formats"), options = {};
    for (const name of ["preset", "collision"]) if (data.get(name)) options[name] = data.get(name);
    if (data.get("lods")) options.lods = (data.get("lods").match(/\d+/g) || []).map(Number).filter(Boolean);
    if (data.get("height")) options.height = Number(data.get("height"));
    const preselected = form.id === "order" && formats.join() === "glb";
    if (formats.length && !preselected) options.formats = formats;
    return options;
  }

  const order = (values) => {
    const options = given.mesh ? {} : { export: assetOptions(part("order")) }; // a mesh keeps shape, size and format
    const text = prompt.hidden ? {} : { prompt: prompt.value };
    return send("POST", "jobs", { ...text, ...options, ...given, ...values });
  };
  const orderAll = async (list) => {
    for (const values of list) await order(values); // one that is refused, as it already runs, does not stop the others
  };

  part("order").addEventListener("submit", (event) => {
    event.preventDefault();
    order({ seed: Number(seed.value) });
  });
  part("four").addEventListener("click", () => orderAll([0, 1, 2, 3].map((k) => ({ seed: Number(seed.value) + k }))));

  const NO_FILES = { image: null, mesh: null, edit: null };

  // Order four objects of the same prompt with seeds that no run has.
  async function moreLike({ prompt: text, seed: first }) {
    const runs = (await send("GET", "runs")) || [], jobs = [...entries.values()].map((entry) => entry.job);
    const used = new Set([...runs, ...jobs].filter((other) => other.prompt === text).map((other) => other.seed)), list = [];
    for (let next = first + 1; list.length < 4; next++) if (!used.has(next)) list.push({ prompt: text, seed: next, ...NO_FILES });
    orderAll(list);
  }

  async function addFile(file) {
    const stored = file && await send("PUT", `files/${encodeURIComponent(file.name)}`, file);
    if (!stored) return;
    delete given.edit;
    given[stored.kind] = stored.name;
    showGiven();
  }

  // Change the object of a run by the next prompt, which starts as the prompt of the run.
  function edit(name, text) {
    Object.keys(given).forEach((kind) => delete given[kind]);
    given.edit = name;
    edited = text;
    showGiven();
    setPrompt(text);
  }

  function showGiven() {
    const words = Boolean(given.mesh || !given.image); // an image alone becomes an object without a prompt
    part("asset").hidden = Boolean(given.mesh);
    checkPrompt();
    for (const name of ["prompt", "words", "nouns", "notes", "browse"]) part(name).hidden = !words;
    const use = { image: given.mesh ? "gives the texture" : "becomes an object", mesh: "gets a texture", edit: "changes to fit the prompt" };
    part("files").replaceChildren(...Object.entries(given).flatMap(([kind, name]) => {
      const label = kind === "edit" ? `“${edited}”` : name.slice(9);
      return [
        element("span", `${label} ${use[kind]}`),
        chip("Remove", `do not use ${label}`, () => {
          delete given[kind];
          showGiven();
        }),
      ];
    }));
  }

  part("file").addEventListener("change", (event) => addFile(event.target.files[0]));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    for (const file of event.dataTransfer.files) addFile(file);
  });

  // --- the queue

  const LIVE = ["running", "stopping", "finishing"];
  const DROP = { waiting: "Remove", running: "Stop", stopping: "Stop", finishing: "Stop" };
  const AGAIN = { cancelled: "Continue", failed: "Try again" };

  const ready = (job) => job.finished && job.state === "finished"; // a failed export leaves the result of before

  // Return a new entry of the queue; `seen`: its result need not be shown by itself.
  function item(job, seen) {
    const place = copy("job"), entry = { place, job, image: "", state: "", seen };
    const does = {
      show: () => show(job.run, job.prompt),
      more: () => moreLike(job),
      edit: () => edit(job.run, job.prompt),
      again: () => send("POST", `jobs/${job.number}/again`),
      finish: () => send("POST", `jobs/${job.number}/finish`),
      drop: () => (LIVE.includes(entry.state) ? send("POST", `jobs/${job.number}/cancel`) : send("DELETE", `jobs/${job.number}`)),
    };
    for (const button of place.querySelectorAll("button")) button.addEventListener("click", does[button.dataset.does]);
    place.querySelector(".prompt").textContent = title(job.prompt);
    part("jobs").append(place);
    return entry;
  }

  function update(entry, job) {
    const find = (what) => entry.place.querySelector(what), live = LIVE.includes(job.state);
    const { phase, done, total, left, details } = job.progress || {}, bar = find("progress"), picture = find("img");
    const status = phase ? [phase, `${Math.floor(100 * done / total)} %`, left && `${left} left`].filter(Boolean).join(", ") : "starting";
    find(".state").textContent = job.state;
    find(".state").className = `state ${job.state}`;
    find(".status").textContent = live ? status : `seed ${job.seed}`;
    say(find(".problem"), job.error);
    bar.hidden = find("details").hidden = !live || !phase;
    if (phase) {
      Object.assign(bar, { max: total, value: done });
      find("details p").textContent = [`step ${done} of ${total}`, ...details].join(", ");
    }
    const image = job.finished ? run(job.run, `/image?${job.state}`) : job.image ? run(job.run, `/files/${encodeURI(job.image)}`) : "";
    picture.hidden = !image;
    picture.alt = image && (job.finished ? `Result of ${title(job.prompt)}` : `Current views of ${title(job.prompt)}`);
    picture.className = job.finished ? "result" : "";
    if (image && image !== entry.image) picture.src = image;
    for (const name of ["show", "more", "edit"]) find(`[data-does=${name}]`).hidden = !job.finished || name !== "show" && !job.can_export;
    find("[data-does=finish]").hidden = !job.can_finish;
    say(find("[data-does=again]"), AGAIN[job.state] || "");
    find("[data-does=drop]").textContent = DROP[job.state] || "Clear";
    if (ready(job) && !entry.seen) show(job.run, job.prompt);
    Object.assign(entry, { state: job.state, seen: ready(job), image });
  }

  function showJobs(state) {
    const numbers = state.jobs.map((job) => job.number);
    for (const [number, entry] of entries) {
      if (numbers.includes(number)) continue;
      entry.place.remove();
      entries.delete(number);
    }
    for (const job of state.jobs) {
      // a job may have ended by its first event: it is shown, but not if it had ended when the page was opened
      if (!entries.has(job.number)) entries.set(job.number, item(job, over < 0 && ready(job)));
      update(entries.get(job.number), job);
    }
    part("idle").hidden = state.jobs.length > 0;
    if (state.over !== over) {
      over = state.over;
      loadCards();
    }
  }

  const events = new EventSource("api/v1/events");
  events.addEventListener("message", (event) => showJobs(JSON.parse(event.data)));
  events.addEventListener("open", () => {
    part("gone").hidden = true;
    over = -1; // runs may have ended while there was no connection: the next event lists them again
  });
  events.addEventListener("error", () => { part("gone").hidden = false; }); // the browser connects again

  // --- finished runs

  // Show a run; `beside`: beside the one that is shown.
  async function show(name, text, beside = false) {
    const place = copy("viewer"), viewers = part("viewers"), form = place.querySelector("form");
    place.querySelector("h3").textContent = title(text);
    place.querySelector("a").href = run(name, "/files/report.html");
    place.querySelector("iframe").src = run(name, "/view");
    place.querySelector("button").addEventListener("click", () => {
      place.remove();
      part("shown").hidden = !viewers.childElementCount;
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const options = assetOptions(form);
      if (await send("POST", `runs/${encodeURI(name)}/export`, options)) say(part("problem"), "");
    });
    if (beside && viewers.childElementCount) viewers.replaceChildren(viewers.firstElementChild, place);
    else viewers.replaceChildren(place);
    part("shown").hidden = false;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    part("shown").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
    const about = await send("GET", `runs/${encodeURI(name)}`);
    place.querySelector("details").hidden = !(about && about.can_export);
    const files = Object.entries((about && about.files) || {}).filter(([file]) => /^asset\/(?!asset\.json)|textured\.glb$|^gaussians\./.test(file));
    place.querySelector(".downloads").replaceChildren(...files.map(([file, bytes]) => {
      const row = element("li", ""), link = element("a", file.replace("asset/", ""));
      link.href = run(name, `/files/${encodeURI(file)}`);
      link.download = file.replace("asset/", "");
      row.append(link, element("span", ` ${kind(file)}${Math.ceil(bytes / 1024).toLocaleString("en")} KB`, "hint"));
      return row;
    }));
  }

  const kind = (file) => (/_LOD\d/.test(file) ? "level of detail, " : file.includes("_collision_") ? "collider, " : "");

  async function loadCards() {
    const runs = await send("GET", "runs"), text = JSON.stringify(runs);
    if (!runs || text === listed) return; // new elements would lose a click on the old ones
    listed = text;
    part("cards").replaceChildren(...runs.map((about) => {
      const place = copy("card"), link = place.querySelector("a"), { name, prompt: text } = about;
      const does = {
        more: () => moreLike(about),
        edit: () => edit(name, text),
        compare: () => show(name, text, true),
        remove: () => confirm(`Delete "${title(text)}" with all its files?`) && send("DELETE", `runs/${encodeURI(name)}`),
      };
      for (const button of place.querySelectorAll("button")) {
        button.addEventListener("click", does[button.dataset.does]);
        button.hidden = ["more", "edit"].includes(button.dataset.does) && !about.can_export; // made of a file, not of a prompt
      }
      link.href = run(name, "/files/report.html");
      place.querySelector("img").src = run(name, "/image");
      place.querySelector(".prompt").textContent = title(text);
      place.querySelector(".meta").textContent = [`seed ${about.seed}`, about.early && "finished early", about.ended.slice(0, 10)].filter(Boolean).join(" · ");
      link.addEventListener("click", (event) => {
        event.preventDefault();
        show(name, text);
      });
      return place;
    }));
    part("empty").hidden = runs.length > 0;
  }

  checkPrompt();
})();
