"use strict";
// A page that watches: asks its own address for what is new, and puts only that into the page.

const EVERY_MS = 1000;
const HIDDEN_MS = 5000;
const known = new Map(); // section -> {html, charts: digests; blocks: HTML of its blocks as it came}

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
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
    old.replaceWith(fresh);
    startCharts(fresh);
    startRollouts(fresh);
  } else {
    [...fresh.children].forEach((block, i) => {
      if (blocks[i] === last[i]) return;
      if (block.tagName === "DETAILS") block.open = old.children[i].open;
      old.children[i].replaceWith(block);
      startCharts(block);
      startRollouts(block);
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

async function watch() {
  const beat = document.getElementById("beat");
  const have = [...known].map(([id, { html, charts }]) => `${id}:${html}:${charts}`).join(",");
  try {
    const answer = await fetch(`state?have=${encodeURIComponent(have)}`);
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    putState(state);
    beat.textContent = `${state.said}, ${new Date().toLocaleTimeString()}`;
    beat.classList.remove("wrong");
  } catch {
    beat.textContent = "megaladder watch has ended; the page stays as it is";
    beat.classList.add("wrong");
  }
  setTimeout(watch, document.hidden ? HIDDEN_MS : EVERY_MS);
}

if (document.body.dataset.live) watch();
