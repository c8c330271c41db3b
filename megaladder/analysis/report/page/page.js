"use strict";
const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
const search = document.getElementById("search");
if (search) {
  const verdict = document.getElementById("verdict"), source = document.getElementById("source"), count = document.getElementById("count");
  const items = [...document.querySelectorAll(".rollout")];
  let texts = null, timer = 0;
  const update = () => {
    texts = texts || items.map((item) => item.textContent.toLowerCase());
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    items.forEach((item, i) => {
      const fits = words.every((word) => texts[i].includes(word)) && (!verdict.value || item.dataset.verdict === verdict.value)
        && (!source.value || item.dataset.source === source.value);
      item.hidden = !fits;
      shown += fits;
    });
    count.textContent = shown + " of " + items.length + " shown";
  };
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(update, 120); });
  verdict.addEventListener("change", update);
  source.addEventListener("change", update);
}
