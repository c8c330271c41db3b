"use strict";
// Charts: uPlot draws them. Pointer and arrow keys read values out, dragging and + zoom, legends
// switch lines on and off. Values come rounded for display and are shown as they are.

const HEIGHT = 210;
const PAPER_WIDTH = 310;
const MOST_IN_TIP = 6;
const MOST_BESIDE = 2; // in charts that only follow the cursor of another one
const FEW_POINTS = 40;
const MARK_EVERY = 70; // pixels, on lines of many points
const hidden = new Set(); // names of lines that are switched off
const view = { log: false, smooth: 0 };
const plots = new Map(); // element -> Plot
const colours = new Map(); // of the present theme

function colour(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(root).getPropertyValue(name).trim());
  return colours.get(name);
}

/** A number that was rounded to five digits already: only its unit is chosen here. */
function show(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e15 || (size < 1e-4 && size > 0)) {
    return String(Number(value.toPrecision(5)).toExponential()).replace("e+", "e");
  }
  const [unit, scale] = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]].find(
    (pair) => size >= pair[1] && size >= 1e5,
  ) || ["", 1];
  return Number((value / scale).toPrecision(5)) + unit;
}

function expand(x) {
  return Array.isArray(x) ? x : Array.from({ length: x.n }, (_, i) => x.from + i * x.by);
}

/** Running mean that forgets, without the pull of its start. */
function smoothed(values, weight) {
  if (!weight) return values;
  let mean = 0, sum = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    sum = weight * sum + (1 - weight);
    return mean / sum;
  });
}

class Plot {
  constructor(element, chart, xs) {
    this.element = element;
    this.tip = make("div", "tip");
    this.take(chart, xs);
    this.build();
  }

  take(chart, xs) {
    this.chart = chart;
    this.lines = chart.series.map((line) => ({ ...line, xs: expand(xs[line.x]) }));
  }

  /** One x for all lines, and for each line its values and, where it has them, its bounds. */
  data() {
    const tables = this.lines.map((line) => {
      const values = line.dots ? line.v : smoothed(line.v, view.smooth);
      return [line.xs, values, ...(line.lo ? [line.lo, line.hi] : [])];
    });
    const alike = this.chart.series.every((line) => line.x === this.chart.series[0].x);
    return alike ? [tables[0][0], ...tables.flatMap((t) => t.slice(1))] : uPlot.join(tables);
  }

  build(width = this.element.clientWidth || PAPER_WIDTH) {
    this.plot?.destroy();
    this.columns = []; // place of each line among uPlot's series
    const series = [{}], bands = [];
    this.lines.forEach((line) => {
      this.columns.push(series.length);
      series.push(this.seriesOf(line));
      if (line.lo) {
        bands.push({ series: [series.length + 1, series.length], fill: () => colour(`--c${line.s}`) + "2b" });
        const edge = { show: !hidden.has(line.n), paths: () => null, points: { show: false } };
        series.push({ ...edge }, { ...edge });
      }
    });
    this.plot = new uPlot(this.options(width, series, bands), this.data(), this.element);
    this.plot.over.append(this.tip);
    this.tip.hidden = true;
  }

  seriesOf(line) {
    const stroke = () => colour(`--c${line.s}`);
    const few = line.dots || line.v.length <= FEW_POINTS;
    return {
      label: line.n,
      show: !hidden.has(line.n),
      stroke,
      width: 1.7,
      dash: line.dash || [],
      paths: line.dots ? () => null : undefined,
      points: { show: few && !line.mark, size: line.dots ? 8 : 5, fill: stroke, stroke },
    };
  }

  options(width, series, bands) {
    const { log, range, x } = this.chart;
    const xLog = log && this.lines.every((line) => line.xs.every((value) => value > 0));
    const yLog = view.log && this.lines.every((line) => [...line.v, ...(line.lo || [])].every((v) => v === null || v > 0));
    const least = range && !yLog ? { range: (u, low, high) => [Math.min(range[0], low ?? range[0]), Math.max(range[1], high ?? range[1])] } : {};
    const axis = { stroke: () => colour("--soft"), font: "11px system-ui, sans-serif", labelFont: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { stroke: () => colour("--rule"), width: 1, size: 4 },
      values: (u, ticks) => ticks.map((tick) => (tick === null ? "" : show(Number(tick.toPrecision(6))))) };
    const whole = x === "step" || x === "layer" ? { incrs: [1, 2, 5].flatMap((m) => [m, m * 10, m * 100, m * 1e3, m * 1e4, m * 1e5]).sort((a, b) => a - b) } : {};
    return {
      width, height: HEIGHT, series, bands, legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false }, sync: { key: this.syncKey() }, points: { size: 7 } },
      scales: { x: { time: false, distr: xLog ? 3 : 1, log: 2 }, y: { distr: yLog ? 3 : 1, ...least } },
      axes: [
        { ...axis, ...whole, label: x, labelSize: 16, size: 30, space: 46 },
        { ...axis, size: (u, values) => 14 + 6.4 * Math.max(2, ...(values || []).map((text) => text.length)) },
      ],
      hooks: { setCursor: [() => this.tell()], draw: [(u) => this.whiskers(u), (u) => this.marks(u)] },
    };
  }

  /** Charts over the same steps share cursor and zoom. */
  syncKey() {
    const ends = this.lines.flatMap((line) => [line.xs[0], line.xs.at(-1)]);
    return [this.element.closest("section").id, this.chart.x, Math.min(...ends), Math.max(...ends)].join("|");
  }

  /** Intervals of single points, where a band would hide them. */
  whiskers(u) {
    this.lines.forEach((line) => {
      if (!line.lo || hidden.has(line.n) || line.v.length > FEW_POINTS) return;
      u.ctx.strokeStyle = colour(`--c${line.s}`);
      u.ctx.lineWidth = devicePixelRatio;
      line.xs.forEach((x, i) => {
        const left = u.valToPos(x, "x", true);
        if (line.lo[i] === null || left < u.bbox.left || left > u.bbox.left + u.bbox.width) return;
        u.ctx.beginPath();
        u.ctx.moveTo(left, u.valToPos(line.lo[i], "y", true));
        u.ctx.lineTo(left, u.valToPos(line.hi[i], "y", true));
        u.ctx.stroke();
      });
    });
  }

  /** The marks by which lines are told apart where there are more than colours and dashes for. */
  marks(u) {
    this.lines.forEach((line, i) => {
      if (!line.mark || hidden.has(line.n)) return;
      const shape = new Path2D(line.mark);
      const all = line.dots || line.v.length <= FEW_POINTS;
      u.ctx.fillStyle = colour(`--c${line.s}`);
      // not all in one column
      let last = all ? -Infinity : u.bbox.left - MARK_EVERY * devicePixelRatio * (1 - (i % 5) / 5);
      u.data[this.columns[i]].forEach((value, k) => {
        const left = u.valToPos(u.data[0][k], "x", true);
        const apart = all || left - last >= MARK_EVERY * devicePixelRatio;
        if (value === null || value === undefined || !apart) return;
        last = left;
        if (left < u.bbox.left || left > u.bbox.left + u.bbox.width) return;
        u.ctx.save();
        u.ctx.translate(left, u.valToPos(value, "y", true));
        u.ctx.scale(0.8 * devicePixelRatio, 0.8 * devicePixelRatio);
        u.ctx.fill(shape);
        u.ctx.restore();
      });
    });
  }

  /** The values nearest to the cursor, line by line. */
  tell() {
    const { left, idx, top } = this.plot.cursor;
    this.tip.hidden = !(left >= 0) || idx === null || idx === undefined;
    if (this.tip.hidden) return;
    const x = this.plot.data[0][idx];
    const visible = this.lines.filter((line) => !hidden.has(line.n));
    const here = this.element.matches(":hover, :focus");
    if (!here && visible.length > MOST_BESIDE) {
      this.tip.hidden = true;
      return;
    }
    const found = visible.flatMap((line) => this.at(line, x));
    found.sort((a, b) => a.away - b.away || Math.abs(a.y - top) - Math.abs(b.y - top));
    const near = found.slice(0, MOST_IN_TIP);
    const every = new Set(near.map((one) => one.line.every || 1));
    const means = every.size === 1 && !every.has(1) ? `, means of ${[...every][0]} steps` : "";
    const head = near.some((one) => one.label) ? "" : `${this.chart.x} ${show(x)}${means}`;
    this.tip.replaceChildren(make("div", "soft", head));
    near.forEach((one) => {
      const row = make("div", `line${one.line.s}`);
      const mean = !means && one.line.every ? `, mean of ${one.line.every} steps` : "";
      row.append(make("i"), make("bdi", "", one.text + mean));
      this.tip.append(row);
    });
    if (found.length > near.length) this.tip.append(make("div", "soft", `and ${found.length - near.length} more`));
    this.tip.classList.toggle("left", left > this.plot.over.clientWidth / 2);
  }

  at(line, x) {
    let best = 0;
    line.xs.forEach((value, i) => {
      if (line.v[i] !== null && Math.abs(value - x) < Math.abs(line.xs[best] - x)) best = i;
    });
    if (line.v[best] === null) return [];
    const places = line.dots ? line.xs.flatMap((value, i) => (value === line.xs[best] ? [i] : [])) : [best];
    return places.map((i) => {
      const bounds = line.lo && line.lo[i] !== null ? ` [${show(line.lo[i])}, ${show(line.hi[i])}]` : "";
      const where = line.xs[i] === x ? "" : ` at ${show(line.xs[i])}`;
      const label = line.labels?.[i];
      return { line, label, text: label || `${line.n}: ${show(line.v[i])}${bounds}${where}`,
        away: Math.abs(line.xs[i] - x), y: this.plot.valToPos(line.v[i], "y") };
    });
  }

  update(chart, xs) {
    const kind = (s) => [s.n, s.s, s.dash, s.mark, !!s.lo];
    const same = JSON.stringify(chart.series.map(kind)) === JSON.stringify(this.chart.series.map(kind));
    this.take(chart, xs);
    if (!same) return this.build();
    this.plot.setData(this.data(), !this.zoomed());
    if (this.zoomed()) this.plot.redraw();
  }

  extent() {
    const xs = this.plot.data[0];
    return [xs[0], xs.at(-1)];
  }

  zoomed() {
    const { min, max } = this.plot.scales.x;
    const [first, last] = this.extent();
    return min > first || max < last;
  }

  showLines() {
    this.lines.forEach((line, i) => {
      const show = !hidden.has(line.n);
      for (let k = 0; k < (line.lo ? 3 : 1); k += 1) this.plot.setSeries(this.columns[i] + k, { show });
    });
  }

  zoom(factor) {
    const { min, max } = this.plot.scales.x;
    const [first, last] = this.extent();
    const { left } = this.plot.cursor;
    const middle = left >= 0 ? this.plot.posToVal(left, "x") : (min + max) / 2;
    const low = Math.max(first, middle - (middle - min) * factor);
    const high = Math.min(last, middle + (max - middle) * factor);
    const { idx } = this.plot.cursor;
    if (high > low) this.plot.setScale("x", { min: low, max: high });
    if (left >= 0) queueMicrotask(() => this.point(idx));
  }

  /** Puts the cursor on a value. */
  point(place) {
    this.plot.setCursor({ left: this.plot.valToPos(this.plot.data[0][place], "x"), top: 10 });
  }

  reset() {
    this.plot.setData(this.plot.data, true);
    this.plot.setCursor({ left: -10, top: -10 });
  }

  /** To another value, which a zoomed chart follows, and says it. */
  move(by) {
    const xs = this.plot.data[0];
    const { idx, left } = this.plot.cursor;
    const now = left >= 0 ? idx : by > 0 ? -1 : xs.length;
    const next = Math.min(xs.length - 1, Math.max(0, now + by));
    const { min, max } = this.plot.scales.x;
    const aside = Math.min(0, xs[next] - min) + Math.max(0, xs[next] - max);
    if (aside) this.plot.setScale("x", { min: min + aside, max: max + aside });
    queueMicrotask(() => {
      this.point(next);
      announce([...this.tip.children].map((line) => line.textContent).join("; "));
    });
  }

  key(event) {
    const idle = this.plot.cursor.left < 0 && !this.zoomed();
    if (event.key === "Escape" && idle) return;
    const act = {
      ArrowRight: () => this.move(1), ArrowLeft: () => this.move(-1),
      Home: () => this.move(-Infinity), End: () => this.move(Infinity),
      "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), Escape: () => this.reset(),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }
}

// ---- what a chart or a text shows by place or colour, as a table

/** Rows of texts under a head; on a narrow page each cell names its column. */
function tableOf(caption, columns, rows) {
  const table = make("table"), head = make("tr"), body = make("tbody"), top = make("thead");
  columns.forEach((name) => head.append(make("th", "", name)));
  [...head.children].forEach((cell) => { cell.scope = "col"; });
  top.append(head);
  rows.forEach((cells) => {
    const row = make("tr");
    cells.forEach((text, i) => {
      const cell = make("td");
      cell.append(make("bdi", "", text));
      cell.dataset.label = columns[i];
      row.append(cell);
    });
    body.append(row);
  });
  table.append(make("caption", "", caption), top, body);
  return table;
}

function tableOfChart(element) {
  const { xs, charts } = pageData.charts[element.closest("section").id];
  const chart = charts[Number(element.dataset.chart)];
  const cells = new Map(); // x -> a text for each line
  chart.series.forEach((line, k) => {
    expand(xs[line.x]).forEach((x, i) => {
      if (line.v[i] === null) return;
      const bounds = line.lo && line.lo[i] !== null ? ` [${show(line.lo[i])}, ${show(line.hi[i])}]` : "";
      const text = line.labels?.[i] || show(line.v[i]) + bounds;
      const row = cells.get(x) || cells.set(x, chart.series.map(() => "")).get(x);
      row[k] = row[k] ? `${row[k]}; ${text}` : text;
    });
  });
  const rows = [...cells].sort(([a], [b]) => a - b).map(([x, texts]) => [show(x), ...texts.map((text) => text || "–")]);
  const names = chart.series.map((line) => (line.every ? `${line.n}, means of ${line.every}` : line.n));
  return tableOf(`${chart.y} by ${chart.x}`, [chart.x, ...names], rows);
}

function tableOfTokens(element) {
  const marked = [...element.querySelectorAll("[title]")];
  return tableOf("Tokens that the base would have said otherwise", ["token", "under the base"],
    marked.map((token) => [JSON.stringify(token.textContent), token.title]));
}

/** Fills an open fold of values, from what stands before it. */
function fillValues(fold) {
  const element = fold.previousElementSibling;
  const place = make("div", "scroll long");
  place.tabIndex = 0;
  place.append(element.matches(".chart") ? tableOfChart(element) : tableOfTokens(element));
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", place.querySelector("caption").textContent);
  // the line that opened it stays where it is, and keeps the focus
  fold.querySelector(":scope > .scroll")?.remove();
  fold.append(place);
}

document.addEventListener("toggle", (event) => {
  if (event.target.matches(".values[open]")) fillValues(event.target);
}, true);

// ---- the charts of the page: drawn when they come into sight

const sight = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target));
}, { rootMargin: "300px" });
const sizes = new ResizeObserver((entries) => {
  entries.forEach(({ target, contentRect }) => {
    const plot = plots.get(target)?.plot;
    const width = Math.floor(contentRect.width);
    if (plot && width > 0 && plot.width !== width) plot.setSize({ width, height: HEIGHT });
  });
});

function draw(element) {
  if (plots.has(element) || !element.isConnected) return;
  const { xs, charts } = pageData.charts[element.closest("section").id];
  const chart = charts[Number(element.dataset.chart)];
  if (!chart?.series.length) return;
  const plot = new Plot(element, chart, xs);
  plots.set(element, plot);
  sight.unobserve(element);
  sizes.observe(element);
  element.addEventListener("keydown", (event) => plot.key(event));
}

/** Finds charts and legends below an element that came into the page. */
function startCharts(parent) {
  parent.querySelectorAll(".chart").forEach((element) => sight.observe(element));
  watchWidths(parent);
  showPressed(parent);
}

/** After parts of the page went or got new data. */
function refreshCharts(section) {
  document.querySelectorAll(`#${section} .values[open]`).forEach((fold) => {
    const top = fold.querySelector(".scroll")?.scrollTop;
    fillValues(fold);
    fold.querySelector(".scroll").scrollTop = top;
  });
  for (const [element, plot] of plots) {
    if (!element.isConnected) {
      plot.plot.destroy();
      plots.delete(element);
      sizes.unobserve(element);
    } else if (element.closest("section").id === section) {
      const { xs, charts } = pageData.charts[section];
      plot.update(charts[Number(element.dataset.chart)], xs);
    }
  }
}

function redrawAll() {
  colours.clear();
  plots.forEach((plot) => plot.plot.redraw());
}

function showPressed(parent) {
  parent.querySelectorAll("[data-run]").forEach((button) => {
    button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.run)));
  });
  parent.querySelectorAll("[data-view=log]").forEach((box) => { box.checked = view.log; });
  parent.querySelectorAll("[data-view=smooth]").forEach((range) => { range.value = view.smooth; });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-run], [data-all]");
  if (!button) return;
  const runs = button.dataset.run === undefined
    ? [...button.parentElement.querySelectorAll("[data-run]")].map((one) => one.dataset.run)
    : [button.dataset.run];
  const hide = button.dataset.all ? button.dataset.all === "no" : !hidden.has(runs[0]);
  runs.forEach((run) => (hide ? hidden.add(run) : hidden.delete(run)));
  showPressed(document);
  plots.forEach((plot) => plot.showLines());
});

document.addEventListener("input", (event) => {
  const name = event.target.dataset?.view;
  if (name === "log") view.log = event.target.checked;
  else if (name === "smooth") view.smooth = Number(event.target.value);
  else return;
  showPressed(document);
  plots.forEach((plot) => (name === "log" ? plot.build() : plot.plot.setData(plot.data(), !plot.zoomed())));
});

// on paper: every chart that is not folded, in the light colours, two beside each other
addEventListener("beforeprint", () => {
  root.classList.add("printing");
  colours.clear();
  document.querySelectorAll(".chart").forEach((element) => {
    if (element.clientWidth > 0) draw(element);
  });
  plots.forEach((plot) => plot.build(PAPER_WIDTH));
});
addEventListener("afterprint", () => {
  root.classList.remove("printing");
  colours.clear();
  plots.forEach((plot) => plot.build());
});

startCharts(document);
