"use strict";
const byId = (id) => document.getElementById(id);

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

byId("slice-metric").addEventListener("change", (event) => {
  for (const body of document.querySelectorAll("tbody[data-metric]"))
    body.hidden = body.dataset.metric !== event.target.value;
});

const gallery = byId("gallery");
const samples = [...gallery.children].map((node) => ({ node, ...JSON.parse(node.dataset.row) }));

function fill(id, values) {
  for (const value of [...new Set(values)].sort()) byId(id).add(new Option(value, value));
}
fill("filter-style", samples.flatMap((sample) => sample.styles));
fill("filter-flag", samples.flatMap((sample) => sample.flags));

function update() {
  const option = byId("sort-metric").selectedOptions[0];
  const style = byId("filter-style").value;
  const flag = byId("filter-flag").value;
  const worst = byId("sort-order").value === "worst";
  const method = byId("sort-method").value;
  // Samples without a value (failed, undefined) come first among the worst and last among the best.
  const value = (sample) => sample.values[method]?.[option.value] ?? null;
  const sign = (option.dataset.better === "lower") === worst ? -1 : 1;
  const ordered = [...samples].sort((a, b) => {
    const [x, y] = option.value ? [value(a), value(b)] : [0, 0];
    if (x === null || y === null)
      return x === y ? a.place - b.place : (x === null) === worst ? -1 : 1;
    return sign * (x - y) || a.place - b.place;
  });
  let shown = 0;
  for (const sample of ordered) {
    sample.node.hidden =
      (style && !sample.styles.includes(style)) || (flag && !sample.flags.includes(flag));
    shown += !sample.node.hidden;
    gallery.append(sample.node);
  }
  byId("count").textContent = `${shown} of ${samples.length} shown`;
}
for (const id of ["sort-metric", "sort-method", "sort-order", "filter-style", "filter-flag"])
  byId(id).addEventListener("change", update);
update();

const zoom = byId("zoom");
let current = null;
function show(image) {
  current = image;
  const large = zoom.querySelector("img");
  large.src = image.src;
  large.className = image.className;
  zoom.querySelector("p").textContent = image.alt;
  if (!zoom.open) zoom.showModal();
}
gallery.addEventListener("click", (event) => {
  if (event.target.tagName === "IMG") show(event.target);
});
// Left and right step through the pictures of the same sample, which is how edits are compared.
zoom.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const row = [...current.closest(".figures").querySelectorAll("img")];
  show(row[(row.indexOf(current) + step + row.length) % row.length]);
});
