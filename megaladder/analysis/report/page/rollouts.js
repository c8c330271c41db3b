"use strict";
// Rollouts to read: chosen by words, problem, run, step, verdict, reward and length. A written page
// holds them; a page that watches asks for them.

const PAGE_OF_ROLLOUTS = 40;

/** Whether a rollout is what the form asks for. */
function fits(rollout, wanted) {
  const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
  const text = words.length ? `${rollout.question || ""}\n${rollout.response}`.toLowerCase() : "";
  return words.every((word) => text.includes(word))
    && (rollout.problem || "").includes(wanted.problem)
    && (!wanted.source || rollout.source === wanted.source)
    && (!wanted.step || String(rollout.step) === wanted.step)
    && (!wanted.verdict || rollout.correct === (wanted.verdict === "right"))
    && (!wanted.cut || rollout.truncated === (wanted.cut === "yes"))
    && (wanted.least === "" || rollout.reward >= Number(wanted.least))
    && (wanted.most === "" || rollout.reward <= Number(wanted.most));
}

/** A rollout as a fold: its facts, then question and answer. */
function rolloutElement(rollout) {
  const fold = make("details", "rollout"), summary = make("summary"), body = make("div", "body");
  const [mark, word] = { true: ["✓", "right"], false: ["✗", "wrong"] }[rollout.correct] || ["·", "not graded"];
  const verdict = make("span", word === "not graded" ? "soft" : word, mark);
  verdict.setAttribute("role", "img");
  verdict.setAttribute("aria-label", word);
  verdict.title = word;
  const facts = [
    rollout.source,
    rollout.step === undefined ? "" : `step ${rollout.step}`,
    rollout.problem,
    rollout.reward === undefined ? "" : `reward ${rollout.reward}`,
    rollout.tokens === undefined ? "" : `${rollout.tokens} tokens`,
    rollout.truncated ? "truncated" : "",
  ].filter(Boolean);
  const where = make("span", "where");
  facts.forEach((fact, i) => where.append(i ? " · " : "", make("bdi", "", fact)));
  const head = make("span", "head");
  head.append(make("bdi", "", rollout.response?.slice(0, 140)));
  summary.append(verdict, where, head);
  fold.append(summary, body);
  fold.addEventListener("toggle", () => {
    if (!fold.open || body.childElementCount) return;
    if (rollout.question) body.append(make("div", "note", "question"), readable(rollout.question, "Question"));
    body.append(make("div", "note", "answer"), readable(rollout.response || "", "Answer"));
    const list = make("dl");
    if (rollout.answer) list.append(make("dt", "", "taken as"), make("dd", "", rollout.answer));
    if (rollout.gold) list.append(make("dt", "", "gold"), make("dd", "", rollout.gold));
    body.append(list);
  });
  return fold;
}

function readable(text, name) {
  const element = make("pre", "", text);
  element.tabIndex = 0;
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", name);
  return element;
}

class Rollouts {
  constructor(element) {
    this.element = element;
    this.form = element.querySelector("form");
    this.list = element.querySelector(".list");
    this.more = element.querySelector(".more");
    this.count = element.querySelector(".count");
    this.live = element.dataset.live === "yes";
    this.asked = 0;
    let timer = 0;
    const later = () => { clearTimeout(timer); timer = setTimeout(() => this.find(), 150); };
    this.form.addEventListener("input", later);
    this.form.addEventListener("reset", later);
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.find(); });
    this.more.addEventListener("click", () => this.add().focus());
    this.list.addEventListener("keydown", (event) => this.key(event));
    if (!this.live) this.offer(this.sources(pageData.rollouts));
    this.find();
  }

  /** Names of the runs and evaluations, each with its steps. */
  sources(rollouts) {
    const found = new Map();
    rollouts.forEach(({ source, step }) => {
      if (!found.has(source)) found.set(source, new Set());
      if (step !== undefined) found.get(source).add(step);
    });
    return [...found].map(([name, steps]) => ({ name, steps: [...steps] }));
  }

  /** Fills the choices; what was chosen stays. */
  offer(sources) {
    const steps = [...new Set(sources.flatMap((source) => source.steps))].sort((a, b) => a - b);
    this.fill(this.form.elements.source, sources.map((source) => source.name));
    this.fill(this.form.elements.step, steps.map(String));
  }

  fill(select, values) {
    const chosen = select.value;
    const options = values.map((value) => {
      const option = make("option", "", value);
      option.value = value;
      return option;
    });
    select.replaceChildren(select.firstElementChild, ...options);
    select.value = values.includes(chosen) ? chosen : "";
  }

  wanted() {
    return Object.fromEntries(new FormData(this.form));
  }

  async find() {
    const wanted = this.wanted();
    this.shown = 0;
    if (!this.live) {
      this.found = pageData.rollouts.filter((rollout) => fits(rollout, wanted));
      this.say(`${this.found.length} of ${pageData.rollouts.length}`);
    } else if (!(await this.ask(wanted))) {
      return;
    }
    this.list.replaceChildren();
    this.add();
  }

  /** What a watched run has; false where the answer came too late to matter. */
  async ask(wanted) {
    this.asked += 1;
    const mine = this.asked;
    try {
      const answer = await fetch(`rollouts?${new URLSearchParams(wanted)}`);
      const found = await answer.json();
      if (mine !== this.asked) return false;
      this.offer(found.sources);
      this.found = found.rollouts;
      this.newest = JSON.stringify(found.sources);
      this.say(found.note);
      return true;
    } catch {
      this.say("no answer from megaladder watch");
      return false;
    }
  }

  /** A watched run went on: read it at once, unless someone is reading here. */
  news(sources) {
    if (!this.live || JSON.stringify(sources) === this.newest) return;
    const reading = this.list.querySelector("[open]") || this.element.contains(document.activeElement);
    if (!reading) this.find();
    else this.offer(sources);
  }

  say(text) {
    this.count.textContent = text;
  }

  /** Shows the next ones; the line of the first of them. */
  add() {
    const next = this.found.slice(this.shown, this.shown + PAGE_OF_ROLLOUTS).map(rolloutElement);
    this.list.append(...next);
    this.shown += next.length;
    this.more.hidden = this.shown >= this.found.length;
    return next[0]?.firstElementChild;
  }

  /** Up and down go from rollout to rollout. */
  key(event) {
    const fold = event.target.tagName === "SUMMARY" && event.target.closest(".rollout");
    const other = fold && { ArrowDown: fold.nextElementSibling, ArrowUp: fold.previousElementSibling }[event.key];
    if (!other) return;
    other.firstElementChild.focus();
    event.preventDefault();
  }
}

const rolloutLists = new Map();

function startRollouts(parent) {
  parent.querySelectorAll(".rollouts").forEach((element) => rolloutLists.set(element, new Rollouts(element)));
}

startRollouts(document);
