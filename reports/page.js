"use strict";
// Filters the browser of flipped items. Without it, all items are shown.
for (const form of document.querySelectorAll("form[data-filters]")) {
  const cards = [...document.querySelectorAll(form.dataset.filters)];
  const shown = form.querySelector("output");
  const update = () => {
    let count = 0;
    for (const card of cards) {
      const fits = [...form.querySelectorAll("select")].every(
        (select) => !select.value || card.dataset[select.name].split(" ").includes(select.value));
      card.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${cards.length} shown`;
  };
  form.hidden = false;
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
