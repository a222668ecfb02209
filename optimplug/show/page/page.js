"use strict";
// A group's row and its curve light up together; what is said of it is in the page already.
const tip = document.getElementById("tip");
let pinned = null;

function show(part, x, y) {
  hide();
  const group = part.dataset.group;
  document.body.classList.add("hovering");
  for (const other of document.querySelectorAll("[data-group]")) {
    other.classList.toggle("lit", other.dataset.group === group);
  }
  const curve = document.querySelector(`.curve[data-group="${group}"]`);
  if (curve) curve.parentNode.appendChild(curve); // the last one drawn lies on top
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

// A line is too thin for a pointer: beside each lies a wide one that is not seen.
for (const curve of [...document.querySelectorAll(".curve")]) {
  const wide = curve.cloneNode();
  wide.setAttribute("class", "grab");
  curve.ownerSVGElement.append(wide);
}

for (const part of document.querySelectorAll(".grab, tbody tr")) {
  part.addEventListener("mouseenter", (e) => pinned || show(part, e.clientX, e.clientY));
  part.addEventListener("mousemove", (e) => pinned || move(e.clientX, e.clientY));
  part.addEventListener("mouseleave", () => pinned || hide());
  part.addEventListener("focus", () => {
    const box = part.getBoundingClientRect();
    if (!pinned) show(part, box.left + 40, box.bottom);
  });
  part.addEventListener("blur", () => pinned || hide());
  // A click keeps the tooltip, so that a long list can be scrolled.
  part.addEventListener("click", (e) => {
    const again = pinned === part;
    unpin();
    if (again) return;
    show(part, e.clientX, e.clientY);
    pinned = part;
    tip.classList.add("pinned");
    e.stopPropagation();
  });
}
document.addEventListener("click", (e) => tip.contains(e.target) || unpin());
document.addEventListener("keydown", (e) => e.key === "Escape" && unpin());
