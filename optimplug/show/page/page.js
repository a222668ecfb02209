"use strict";
// A group's row and its curves light up together; what is said of it is in the page already.
const tip = document.getElementById("tip");
const find = document.getElementById("find");
const body = document.querySelector("tbody");
const rows = [...body.rows];
const parts = new Map(rows.map((row) => [row.dataset.group, []]));
let pinned = null;

// A line is too thin for a pointer: beside each lies a wide one that is not seen.
for (const curve of [...document.querySelectorAll("polyline")]) {
  const wide = curve.cloneNode();
  wide.setAttribute("class", "grab");
  curve.ownerSVGElement.append(wide);
}
for (const part of document.querySelectorAll("[data-group]")) {
  parts.get(part.dataset.group).push(part);
}

function show(part, x, y) {
  hide();
  const group = part.dataset.group;
  document.body.classList.add("hovering");
  for (const same of parts.get(group)) {
    same.classList.add("lit");
    // The last one drawn lies on top.
    if (same.matches(".curve, .held")) same.parentNode.appendChild(same);
  }
  const about = document.getElementById(`about-${group}`);
  tip.replaceChildren(...[...about.children].map((child) => child.cloneNode(true)));
  tip.classList.add("shown");
  move(x, y);
}

function move(x, y) {
  const left = Math.min(x + 16, window.innerWidth - tip.offsetWidth - 8);
  const below = y + 16 + tip.offsetHeight <= window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, below ? y + 16 : y - 16 - tip.offsetHeight)}px`;
}

function hide() {
  document.body.classList.remove("hovering");
  for (const part of document.querySelectorAll(".lit")) part.classList.remove("lit");
  tip.classList.remove("shown", "pinned");
}

function unpin() {
  pinned = null;
  hide();
}

function pin(part, x, y) {
  const again = pinned === part;
  unpin();
  if (again) return;
  show(part, x, y);
  pinned = part;
  tip.classList.add("pinned");
}

function below(row) {
  const box = row.getBoundingClientRect();
  return [box.left + 40, box.bottom];
}

for (const part of document.querySelectorAll(".grab, tbody tr")) {
  part.addEventListener("mouseenter", (e) => pinned || show(part, e.clientX, e.clientY));
  part.addEventListener("mousemove", (e) => pinned || move(e.clientX, e.clientY));
  part.addEventListener("mouseleave", () => pinned || hide());
  part.addEventListener("focus", () => pinned || show(part, ...below(part)));
  part.addEventListener("blur", () => pinned || hide());
  // A click keeps the tooltip, so that a long list can be scrolled.
  part.addEventListener("click", (e) => {
    pin(part, e.clientX, e.clientY);
    e.stopPropagation();
  });
}
document.addEventListener("click", (e) => tip.contains(e.target) || unpin());
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape") unpin();
  if (e.key === "/" && e.target !== find) {
    e.preventDefault();
    find.focus();
  }
});

// The keyboard comes to one row; arrows go to the others, and Enter is a click.
function reach(row) {
  for (const other of rows) other.tabIndex = other === row ? 0 : -1;
}

function visible() {
  return [...body.rows].filter((row) => !row.classList.contains("out"));
}

function reachFirst() {
  const [first] = visible();
  if (first) reach(first);
}

body.addEventListener("focusin", (e) => reach(e.target.closest("tr")));
body.addEventListener("keydown", (e) => {
  const shown = visible();
  const at = shown.indexOf(e.target);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 }[e.key];
  if (to !== undefined) {
    e.preventDefault();
    unpin();
    shown[to]?.focus();
  } else if (e.key === "Enter" || e.key === " ") {
    e.preventDefault();
    pin(e.target, ...below(e.target));
  }
});

const words = new Map(
  rows.map((row) => {
    const about = document.getElementById(`about-${row.dataset.group}`);
    const names = [...about.querySelectorAll("strong, li")].map((part) => part.textContent);
    return [row, names.join("\n").toLowerCase()];
  }),
);

find.addEventListener("input", () => {
  unpin();
  const wanted = find.value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const row of rows) {
    const has = wanted.every((word) => words.get(row).includes(word));
    for (const part of parts.get(row.dataset.group)) part.classList.toggle("out", !has);
    count += has;
  }
  document.getElementById("none").hidden = count > 0;
  const all = count === rows.length ? "" : `${count} of `;
  document.getElementById("count").textContent = `${all}${rows.length} groups`;
  reachFirst();
});

const heads = [...document.querySelectorAll("th")];

function number(cell) {
  return Number(cell.dataset.value ?? (cell.textContent.replaceAll(",", "") || NaN));
}

function compare(a, b) {
  const difference = number(a) - number(b);
  if (!Number.isNaN(difference)) return difference;
  return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

heads.forEach((head, i) =>
  head.querySelector("button").addEventListener("click", () => {
    const turned = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", turned ? "descending" : "ascending");
    const sign = turned ? -1 : 1;
    // Equal ones stay in the order of the model.
    const order = [...rows].sort((a, b) => sign * compare(a.cells[i], b.cells[i]));
    body.append(...order);
    reachFirst();
  }),
);

const charts = [...document.querySelectorAll(".chart")];

function choose(name) {
  for (const chart of charts) chart.hidden = chart.dataset.picture !== name;
}

for (const choice of document.querySelectorAll("input[name=picture]")) {
  choice.addEventListener("change", () => choose(choice.value));
}
const chosen = document.querySelector("input[name=picture]:checked"); // kept as a page is reloaded
if (chosen) choose(chosen.value);
