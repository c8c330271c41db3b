"use strict";
// The page: its data, the theme, its keys, and what other parts of the script share.

const root = document.documentElement;
const pageData = JSON.parse(document.getElementById("data").textContent);

/** An element with a class and a text; texts of models only ever come in this way. */
function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Says to who listens what keys have brought. */
function announce(text) {
  document.getElementById("said").textContent = text;
}

function isDark() {
  return root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
}

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  redrawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redrawAll());

// Escape closes what is open around the focus, where nothing inside had a use for it
document.addEventListener("keydown", (event) => {
  const fold = event.key === "Escape" && !event.defaultPrevented && event.target.closest("details[open]");
  if (!fold) return;
  fold.open = false;
  fold.querySelector("summary").focus();
  event.preventDefault();
});

// a table that is wider than its place can be scrolled with keys, too
const overflows = new ResizeObserver((entries) => {
  entries.forEach(({ target }) => {
    if (target.tabIndex === 0 || target.scrollWidth <= target.clientWidth) return;
    target.tabIndex = 0;
    target.setAttribute("role", "group");
    target.setAttribute("aria-label", target.querySelector("caption").textContent);
  });
});

function watchWidths(parent) {
  parent.querySelectorAll(".scroll").forEach((element) => overflows.observe(element));
}
