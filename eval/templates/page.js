"use strict";
const byId = (id) => document.getElementById(id);

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

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
byId("gallery").addEventListener("click", (event) => {
  if (event.target.tagName === "IMG") show(event.target);
});
// Left and right step through the images of the same sample, which is how edits are compared.
zoom.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const row = [...current.closest(".figures, .maps").querySelectorAll("img")];
  show(row[(row.indexOf(current) + step + row.length) % row.length]);
});
