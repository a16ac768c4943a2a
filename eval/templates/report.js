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
