"use strict";
// The page: its data, the theme, and what other parts of the script share.

const root = document.documentElement;
const pageData = JSON.parse(document.getElementById("data").textContent);

/** An element with a class and a text; texts of models only ever come in this way. */
function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
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
