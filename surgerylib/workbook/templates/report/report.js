"use strict";
// The page works without this: each cell's code opens by itself. With it, one button opens them all.
const button = document.getElementById("toggle-code");
const cells = document.querySelectorAll("details.code");
if (button && cells.length) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(open));
    button.textContent = open ? "Hide code" : "Show code";
    cells.forEach((cell) => { cell.open = open; });
    document.querySelectorAll("details.setup").forEach((setup) => { setup.open = open; });
  });
}
// Marks in the table of contents where the reader is.
const links = new Map([...document.querySelectorAll(".sidebar a")].map((link) => [link.hash, link]));
const headings = [...document.querySelectorAll("main h1[id], main h2[id], main h3[id]")];
const mark = () => {
  let current = headings[0];
  for (const heading of headings) {
    if (heading.getBoundingClientRect().top < 120) current = heading;
  }
  links.forEach((link, hash) => link.classList.toggle("current", Boolean(current) && hash === "#" + encodeURIComponent(current.id)));
};
if (links.size) {
  document.addEventListener("scroll", mark, { passive: true });
  mark();
}
