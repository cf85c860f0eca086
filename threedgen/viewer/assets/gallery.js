// Filter of the gallery: show the runs whose data-search-text contains every typed word.
"use strict";

(() => {
  const field = document.getElementById("filter");
  const cards = [...document.querySelectorAll(".card")];
  const count = document.getElementById("count");
  const all = count.textContent;

  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      card.hidden = !words.every((word) => card.dataset.searchText.includes(word));
      shown += card.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${all}` : all;
  };

  field.addEventListener("input", apply);
  apply(); // the browser keeps the typed text when the user navigates back
})();
