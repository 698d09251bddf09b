"use strict";
// A click on a heading sorts the table by that column; a second click reverses the order. What was not measured always
// stays at the end. Equal rows keep their order.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const key = (row) => {
        const held = row.cells[column].dataset.key;
        return held === undefined ? row.cells[column].textContent : held === "" ? null : Number(held);
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
      });
      body.append(...rows.map(([, row]) => row));
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    });
  });
}

// A table that is wider than the page gets smaller letters and breaks its cells. If it is still wider, it is folded: a row
// becomes a card with a line for each cell.
function fold() {
  for (const box of document.querySelectorAll(".table")) {
    const table = box.querySelector("table");
    box.classList.remove("folded", "tight");
    if (table.offsetWidth <= box.clientWidth) continue;
    box.classList.add("tight");
    if (table.offsetWidth <= box.clientWidth) continue;
    box.classList.replace("tight", "folded");
    if (table.dataset.labelled) continue;
    const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
    table.style.setProperty("--label", `${Math.max(...heads.map((head) => head.length))}ch`);
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, column) => { cell.dataset.head = heads[column]; });
    }
    table.dataset.labelled = "yes";
  }
}

// The table of all trials: a row stays if it holds every word of the filter.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("page-data").textContent);
const trials = new Map(data.trials.map((trial) => [trial.row, trial]));
const word = (place) => data.words[place];
const trialRows = [...document.querySelectorAll("#table-trials tbody tr")];
const rowNumber = (row) => Number(row.id.slice("trial-".length));
function filterTrials() {
  const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const row of trialRows) {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    const wanted = !byId("filter-accepted").checked || trials.get(rowNumber(row)).accepted;
    row.hidden = !(wanted && words.every((part) => text.includes(part)));
    left += !row.hidden;
  }
  byId("filter-count").textContent = `${left} of ${trialRows.length} trials`;
}

// The plan of a trial, layer by layer; its row and its points are marked.
const HEADS = ["Layer", "Method", "Ranks", "Params Red.", "MACs Red.", "Error", "Dense because"];
let chosen = null;
function element(tag, text = "", parent = null) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (parent) parent.append(made);
  return made;
}
function showPlan(trial) {
  const panel = byId("plan");
  panel.replaceChildren();
  element("h3", `Plan of ${word(trial.said[0])}`, panel);
  element("p", trial.said.slice(1).map(word).join("; ") + (trial.error ? `: ${trial.error}` : ""), panel);
  panel.hidden = false;
  if (!trial.plan.length) {
    element("p", "The log holds no plan of this trial.", panel);
    return;
  }
  const box = element("div", "", panel);
  box.className = "table";
  const table = element("table", "", box);
  const head = element("tr", "", element("thead", "", table));
  for (const name of HEADS) element("th", name, head).style.padding = ".3rem .55rem";
  const body = element("tbody", "", table);
  for (const line of trial.plan) {
    const row = element("tr", "", body);
    for (const place of line) element("td", word(place), row);
  }
  fold();
}
function choose(number, fromTable) {
  const trial = trials.get(number);
  chosen = trial;
  for (const row of trialRows) {
    const here = rowNumber(row) === number;
    row.classList.toggle("chosen", here);
    row.setAttribute("aria-selected", String(here));
    if (here && !fromTable) {
      row.hidden = false;
      const box = row.closest(".table");
      box.scrollTop = row.offsetTop - box.clientHeight / 2;
    }
  }
  showPlan(trial);
  if (fromTable) byId("plot-model").value = word(trial.label);
  drawPlots();
}

// The plots.
const COSTS = { params_kept: "parameters", macs_kept: "MACs", time_kept: "time" };
const CONFIG = { responsive: true, displayModeBar: false, doubleClick: "autosize" };
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const tint = (color) => (dark.matches && color === "#1f1f1f" ? "#f0f0f0" : color);
const shown = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const tuned = (trial) => trial.stage === "finetuned";
const hover = (trial) => trial.said.map((place, line) => (line ? shown(word(place)) : `<b>${shown(word(place))}</b>`));
function points(found, method, x, y, faint) {
  const look = data.methods[method];
  return {
    type: "scatter", mode: "markers", name: shown(look.title), legendgroup: method, showlegend: false,
    x: found.map(x), y: found.map(y), customdata: found.map((trial) => trial.row),
    text: found.map((trial) => hover(trial).join("<br>")), hovertemplate: "%{text}<extra></extra>",
    hoverlabel: { bgcolor: look.color, align: "left" },
    marker: {
      size: 8, color: tint(look.color), line: { width: 1.5, color: tint(look.color) },
      opacity: found.map((trial) => (faint(trial) ? 0.35 : 0.9)),
      symbol: found.map((trial) => look.symbol + (tuned(trial) ? "" : "-open")),
    },
  };
}
function line(method, x, y, name, dash) {
  const look = data.methods[method];
  return {
    type: "scatter", mode: "lines", x, y, legendgroup: method, name, showlegend: false, hoverinfo: "skip",
    line: { color: tint(look.color), width: 1.6, shape: "hv", dash },
  };
}
function legend(method) {
  const look = data.methods[method];
  return {
    type: "scatter", mode: "markers", x: [null], y: [null], name: shown(look.title), legendgroup: method,
    marker: { size: 9, color: tint(look.color), symbol: look.symbol },
  };
}
function reference(front, name) {
  const texts = front.map(([x, y]) => `<b>${name}</b>, as it reports<br>${y.toFixed(2)}% at ${x.toFixed(2)}%`);
  return {
    type: "scatter", mode: "lines+markers", x: front.map((point) => point[0]), y: front.map((point) => point[1]), name,
    text: texts, hovertemplate: "%{text}<extra></extra>", marker: { size: 6, color: "#888" },
    line: { color: "#888", width: 1.6, shape: "hv", dash: "dash" },
  };
}
function ring(x, y) {
  return {
    type: "scatter", mode: "markers", x: [x], y: [y], showlegend: false, hoverinfo: "skip", name: "chosen",
    marker: { size: 17, symbol: "circle-open", color: "#e0218a", line: { width: 3, color: "#e0218a" } },
  };
}
function layout(x, y, shapes = [], range = null) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 12 },
    margin: { l: 58, r: 12, t: 34, b: 50 }, hovermode: "closest", shapes,
    dragmode: window.innerWidth < 640 ? false : "zoom",  // on a phone a drag scrolls the page
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
    xaxis: { title: { text: x }, rangemode: "tozero", zeroline: false, automargin: true },
    yaxis: { title: { text: y }, zeroline: false, automargin: true, ...(range ? { range } : {}) },
  };
}
function denseShapes(model) {
  const at = (low, high, look) => ({ xref: "paper", x0: 0, x1: 1, yref: "y", y0: low, y1: high, layer: "below", ...look });
  const shapes = [];
  if (model.dense === null) return shapes;
  const [low, high] = model.interval;
  if (model.interval.length) shapes.push(at(low, high, { type: "rect", fillcolor: "rgba(128,128,128,.18)", line: { width: 0 } }));
  shapes.push(at(model.dense, model.dense, { type: "line", line: { color: "#888", width: 1.2 } }));
  const floor = data.keep * model.dense;
  shapes.push(at(floor, floor, { type: "line", line: { color: "#888", width: 1.2, dash: "dot" } }));
  return shapes;
}
// The axis of the metric ends where the worst tenth of the trials would flatten the others.
function metricRange(values, dense) {
  const sorted = [...values].sort((a, b) => a - b);
  if (!sorted.length) return { range: null, below: 0 };
  const top = Math.max(sorted.at(-1), dense ?? -Infinity);
  const tenth = sorted[Math.floor(0.1 * (sorted.length - 1))];
  const bottom = Math.min(tenth - (top - tenth) / 2, dense === null ? Infinity : dense - 0.02 * (top - dense));
  const below = sorted.filter((value) => value < bottom).length;
  const room = Math.max(0.06 * (top - bottom), 0.2);
  return below && bottom - sorted[0] > top - bottom ? { range: [bottom, top + room], below } : { range: null, below: 0 };
}
function drawPlots() {
  const label = byId("plot-model").value;
  const cost = byId("plot-cost").value;
  const model = data.models[label];
  const own = data.trials.filter((trial) => word(trial.label) === label);
  const methods = Object.keys(data.methods).filter((name) => own.some((trial) => word(trial.method) === name));
  const of = (found, method) => found.filter((trial) => word(trial.method) === method);
  const costOf = (trial) => trial[cost];
  const value = (trial) => trial.value;
  const placed = own.filter((trial) => costOf(trial) !== null && value(trial) !== null && trial.stage);
  const pareto = methods.map(legend);
  for (const method of methods) {
    const front = model.fronts[cost][method] ?? [];
    pareto.push(line(method, front.map((point) => point[0]), front.map((point) => point[1]), "front"));
    pareto.push(points(of(placed, method), method, costOf, value, (trial) => trial.stage === "pruned"));
  }
  const other = model.reference.fronts[cost] ?? [];
  if (other.length) pareto.push(reference(other, shown(model.reference.name)));
  if (chosen && placed.includes(chosen)) pareto.push(ring(costOf(chosen), value(chosen)));
  const where = cost === "time_kept" ? shown(model.timed) : "";
  const axis = `${data.costs[cost]} kept (% of dense)${where}`;
  const head = shown(model.head);
  const { range, below } = metricRange(placed.map(value), model.dense);
  const under = below ? `; ${below} of ${placed.length} trials lie below the axis (double-click to see them)` : "";
  byId("title-pareto").textContent = `${model.head} against ${COSTS[cost]} kept${under}`;
  const tasks = [Plotly.react("plot-pareto", pareto, layout(axis, `${head}, %`, denseShapes(model), range), CONFIG)];

  const sized = own.filter((trial) => trial.params_kept !== null && trial.stage);
  const size = (trial) => trial.params_kept;
  const made = (trial) => trial.place;
  const progress = methods.map(legend);
  const samplers = [...new Set(model.progress.map((search) => search.sampler))];
  const dashes = ["solid", "dash", "dot", "dashdot"];
  for (const search of model.progress) {
    const dash = dashes[samplers.indexOf(search.sampler) % dashes.length];
    progress.push(line(search.method, search.steps.map((s) => s[0]), search.steps.map((s) => s[1]), search.sampler, dash));
  }
  for (const method of methods) {
    progress.push(points(of(sized, method), method, made, size, (trial) => !trial.accepted));
  }
  if (chosen && sized.includes(chosen)) progress.push(ring(made(chosen), size(chosen)));
  const kept = `${+(100 * data.keep).toPrecision(4)}% of the dense metric`;
  byId("title-progress").textContent = `Smallest network so far that kept ${kept} on validation`;
  tasks.push(Plotly.react("plot-progress", progress, layout("Trials made in the search", "Parameters kept (% of dense)"), CONFIG));
  const band = model.interval.length ? ", the band its 95% interval" : "";
  byId("plot-dense").textContent = model.dense === null ? "" : `Grey: the dense network${band}; dotted: what a trial must keep to be accepted.`;
  return Promise.all(tasks);
}
function start() {
  byId("filters").hidden = false;
  byId("filter-text").addEventListener("input", filterTrials);
  byId("filter-accepted").addEventListener("change", filterTrials);
  filterTrials();
  byId("plots").hidden = false;
  document.documentElement.classList.add("js");
  const option = (select, name, text) => { element("option", text, byId(select)).value = name; };
  for (const label of Object.keys(data.models)) option("plot-model", label, label);
  for (const [cost, title] of Object.entries(data.costs)) option("plot-cost", cost, title);
  for (const select of ["plot-model", "plot-cost"]) byId(select).addEventListener("change", drawPlots);
  dark.addEventListener("change", drawPlots);
  for (const row of trialRows) {
    row.addEventListener("click", () => choose(rowNumber(row), true));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(rowNumber(row), true); });
  }
  fold();
  window.addEventListener("resize", fold);
  drawPlots().then(() => {
    for (const plot of ["plot-pareto", "plot-progress"]) {
      byId(plot).on("plotly_click", (event) => {
        const number = event.points[0].customdata;
        if (number !== undefined) choose(number, false);
      });
    }
  });
}
start();
