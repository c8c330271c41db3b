"use strict";
// A page that watches: asks its own address for what is new, and puts only that into the page.

const EVERY_MS = 1000;
const HIDDEN_MS = 5000;
const CONTROLS = "a, button, input, select, summary, [tabindex='0']:not(.values > .scroll)";
let paused = false, watchHasEnded = false;
const known = new Map(); // section -> {html, charts: digests; blocks: HTML of its blocks as it came}

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

/** Puts an element in the place of another; its folds stay open, the focus where it was. */
function replace(old, fresh) {
  const place = [...old.querySelectorAll(CONTROLS)].indexOf(document.activeElement);
  const folds = fresh.querySelectorAll("details");
  old.querySelectorAll("details").forEach((fold, i) => { if (fold.open && folds[i]) folds[i].open = true; });
  old.replaceWith(fresh);
  startCharts(fresh);
  startRollouts(fresh);
  if (place >= 0) fresh.querySelectorAll(CONTROLS)[place]?.focus({ preventScroll: true });
}

/** Puts a section into the page: only the blocks that differ, folds stay open. */
function putSection(part, before) {
  const fresh = parse(part.html);
  const blocks = [...fresh.children].map((block) => block.outerHTML);
  const old = document.getElementById(part.id);
  const last = known.get(part.id)?.blocks;
  if (!old) {
    before.after(fresh);
    startCharts(fresh);
    startRollouts(fresh);
  } else if (!last || last.length !== blocks.length) {
    replace(old, fresh);
  } else {
    [...fresh.children].forEach((block, i) => {
      if (blocks[i] === last[i]) return;
      if (block.tagName === "DETAILS") block.open = old.children[i].open;
      replace(old.children[i], block);
    });
  }
  return blocks;
}

function putPart(part, before) {
  const now = known.get(part.id) || {};
  if (part.charts !== undefined) pageData.charts[part.id] = JSON.parse(part.charts);
  const blocks = part.html === undefined ? now.blocks : putSection(part, before);
  known.set(part.id, { ...part.digests, blocks });
  if (part.html !== undefined || part.charts !== undefined) refreshCharts(part.id);
}

function putContents(parts) {
  const contents = document.getElementById("contents");
  const ids = parts.map((part) => part.id).join(" ");
  if (contents.dataset.ids === ids) return;
  contents.dataset.ids = ids;
  contents.replaceChildren(...parts.map((part) => {
    const link = make("a", "", part.title);
    link.href = `#${part.id}`;
    return link;
  }));
}

function putState(state) {
  const main = document.getElementById("main");
  [...main.querySelectorAll("section")].forEach((section) => {
    if (state.parts.some((part) => part.id === section.id)) return;
    section.remove();
    known.delete(section.id);
  });
  let before = main.firstElementChild; // what is said without a script
  state.parts.forEach((part) => {
    putPart(part, before);
    before = document.getElementById(part.id);
  });
  putContents(state.parts);
  rolloutLists.forEach((list, element) => {
    if (element.isConnected) list.news(state.sources);
    else rolloutLists.delete(element);
  });
}

/** The line at the top; who listens hears only that it ended, or goes on. */
function beatOf(text, ended) {
  const beat = document.getElementById("beat");
  beat.textContent = text;
  if (beat.classList.toggle("wrong", ended) !== watchHasEnded) announce(text);
  watchHasEnded = ended;
}

async function ask() {
  const have = [...known].map(([id, { html, charts }]) => `${id}:${html}:${charts}`).join(",");
  try {
    const answer = await fetch(`state?have=${encodeURIComponent(have)}`);
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    putState(state);
    beatOf(`${state.said}, ${new Date().toLocaleTimeString()}`, false);
  } catch {
    beatOf("megaladder watch has ended; the page stays as it is", true);
  }
}

async function watch() {
  if (!paused) await ask();
  setTimeout(watch, document.hidden ? HIDDEN_MS : EVERY_MS);
}

if (document.body.dataset.live) {
  document.getElementById("pause").addEventListener("click", (event) => {
    paused = !paused;
    event.currentTarget.setAttribute("aria-pressed", String(paused));
  });
  watch();
}
