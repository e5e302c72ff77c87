"use strict";
// Every plot is a function of the selection shown. Texts of rows and sources reach plotly only through `plain`,
// since plotly reads a subset of HTML in labels.
const R = JSON.parse(document.getElementById("facts").textContent);
const INK = "#1c2430", SOFT = "#5b6675", LINE = "#dfe3e8";
// Okabe and Ito's colours, distinct with any colour vision.
const CHOSEN = "#0072b2", EARLIER = "#56b4e9", OTHER = "#a3abb5", ORANGE = "#e69f00", GREEN = "#009e73", RED = "#d55e00", PINK = "#cc79a7";
const PALETTE = [CHOSEN, RED, GREEN, ORANGE, PINK, EARLIER, "#f0e442", INK];
const last = R.refreshes.length - 1;
let shown = last;

// Names of rows, sources and signals are anybody's: "constructor" is in every object, and no object's own.
const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);
const plain = text => String(text).replace(/[&<>]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
const label = name => name.replace(/_/g, " ");
const at = i => R.refreshes[i].step ?? R.refreshes[i].round;
const unit = R.refreshes[0].step == null ? "round" : "step";
const percent = value => (100 * value).toFixed(0) + "%";

function draw(id, traces, layout = {}) {
  const node = document.getElementById(id);
  if (!node) return;
  const { xaxis = {}, yaxis = {}, ...rest } = layout;
  const axis = { gridcolor: "#eceff2", zeroline: false, linecolor: LINE, automargin: true, fixedrange: true };
  Plotly.react(node, traces, {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: INK },
    margin: { l: 48, r: 12, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: "#fff", bordercolor: LINE, font: { color: INK } }, dragmode: false, hovermode: "closest",
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11.5 } },
    xaxis: { ...axis, showgrid: false, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  }, { displayModeBar: false, responsive: true });
}
const title = text => ({ title: { text, font: { size: 12, color: SOFT }, standoff: 6 } });
const share = { tickformat: ".0%", rangemode: "tozero" };
const marker = x => [{ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: INK, width: 1, dash: "dot" } }];
const middles = edges => edges.slice(1).map((edge, i) => (edge + edges[i]) / 2);

function area(edges, chosen, other, format) {
  const x = middles(edges), hover = `%{y:.1%} at %{x:${format}}<extra></extra>`;
  return [
    { x, y: other, fill: "tozeroy", fillcolor: "rgba(163,171,181,.5)", line: { color: OTHER, width: 1, shape: "hvh" }, mode: "lines", hovertemplate: hover, name: "pool" },
    { x, y: chosen, line: { color: CHOSEN, width: 2.5, shape: "hvh" }, mode: "lines", hovertemplate: hover, name: "coreset" },
  ];
}

function map() {
  if (!R.map.there) return;
  const groups = [[], [], []], before = R.states.slice(0, shown);
  R.rows.id.forEach((_, i) => {
    if (R.states[shown].rank[i] >= 0 && R.states[shown].rank[i] !== null) groups[2].push(i);
    else groups[before.some(s => s.rank[i] !== null && s.rank[i] >= 0) ? 1 : 0].push(i);
  });
  const looks = [["not chosen so far", OTHER, 5, 0.75], ["in an earlier coreset", EARLIER, 6, 0.8], ["in the coreset", CHOSEN, 8, 0.95]];
  const wide = matchMedia("(pointer: fine)").matches;
  draw("map", groups.map((rows, g) => ({
    type: "scatter", mode: "markers", name: looks[g][0], x: rows.map(i => R.rows.x[i]), y: rows.map(i => R.rows.y[i]), customdata: rows,
    hoverinfo: "none", marker: { color: looks[g][1], size: looks[g][2], opacity: looks[g][3], line: { width: g === 2 ? 1 : 0, color: "#fff" } },
  })), {
    xaxis: { showticklabels: false, fixedrange: !wide, showgrid: false }, yaxis: { showticklabels: false, fixedrange: !wide, showgrid: false, scaleanchor: innerWidth > 640 ? "x" : undefined },
    margin: { l: 8, r: 8, t: 8, b: 8 }, dragmode: wide ? "pan" : false, uirevision: "map", annotations: places(),
  });
}

// Names of the larger sources where most of their rows are; of two that would lie on each other, the larger.
let named = null;
function places() {
  if (named) return named;
  const rows = new Map(), width = Math.max(...R.rows.x) - Math.min(...R.rows.x), height = Math.max(...R.rows.y) - Math.min(...R.rows.y), taken = [];
  R.rows.source.forEach((name, i) => { if (name !== null) rows.set(name, rows.get(name) ?? []).get(name).push(i); });
  const median = values => values.sort((a, b) => a - b)[values.length >> 1];
  for (const [name, some] of [...rows].sort((a, b) => b[1].length - a[1].length).slice(0, 12)) {
    const x = median(some.map(i => R.rows.x[i])), y = median(some.map(i => R.rows.y[i]));
    if (taken.some(p => Math.abs(p.x - x) < width * 0.1 && Math.abs(p.y - y) < height * 0.055)) continue;
    taken.push({ x, y, text: plain(name.slice(0, 28)), showarrow: false, font: { size: 12, color: INK }, bgcolor: "rgba(255,255,255,.78)", borderpad: 2 });
  }
  return (named = taken);
}

function components() {
  const home = document.getElementById("components");
  if (!home) return;
  const found = Object.entries(R.components[shown]), missing = found.filter(([name]) => !document.getElementById("component-" + name));
  for (const [name] of missing) {  // all of them before any is drawn: a plot takes the width it finds
    const figure = document.createElement("figure"), head = document.createElement("h3"), plot = document.createElement("div");
    head.textContent = label(name); plot.id = "component-" + name; plot.className = "plot small";
    figure.append(head, plot); home.append(figure);
    if (own(R.meaning, name)) figure.appendChild(document.createElement("figcaption")).textContent = R.meaning[name];
  }
  for (const [name, h] of found) {
    draw("component-" + name, area(h.edges, h.chosen, R.of_chosen.includes(name) ? [] : h.other, ".4~g"), { showlegend: false, margin: { l: 40, r: 8, t: 4, b: 24 }, xaxis: { nticks: 5 }, yaxis: { ...share, nticks: 4 } });
  }
}

function sources() {
  const pool = R.sources.pool, sum = pool.reduce((a, b) => a + b, 0), now = R.sources.coreset[shown], total = now.reduce((a, b) => a + b, 0);
  const order = pool.map((_, i) => i).sort((a, b) => pool[a] - pool[b]), y = order.map((_, place) => place), text = order.map(i => plain(R.sources.names[i].slice(0, 24)));
  const a = order.map(i => pool[i] / sum), b = order.map(i => now[i] / total);
  const dot = (x, name, color) => ({ x, y, text, mode: "markers", name, marker: { size: 11, color }, hovertemplate: "%{text}: %{x:.1%}<extra>" + name + "</extra>" });
  draw("sources", [dot(a, "pool", OTHER), dot(b, "coreset", CHOSEN)], {
    xaxis: { ...share, showgrid: true }, yaxis: { tickvals: y, ticktext: text, range: [-0.5, y.length - 0.5] },  // not of categories: plotly keeps those in a plain object
    shapes: y.map((_, i) => ({ type: "line", x0: a[i], x1: b[i], y0: i, y1: i, layer: "below", line: { color: "#c3dcec", width: 4 } })),
  });
}

const lengths = () => draw("lengths", area(R.lengths.edges, R.lengths.coreset[shown], R.lengths.pool, ".0f"), { xaxis: title("tokens"), yaxis: share });

function overTime(id, lines, layout = {}) {
  const x = R.refreshes.map((_, i) => at(i));
  draw(id, lines.map(([name, y, color, dash]) => ({
    x, y, name, mode: x.length > 1 && !dash ? "lines+markers" : x.length > 1 ? "lines" : "markers", line: { color, width: 2.2, dash }, marker: { size: 6 },
    hovertemplate: `${unit} %{x}: %{y:.3~f}<extra>${name}</extra>`,
  })), { xaxis: title(unit), shapes: marker(at(shown)), ...layout });
}
function copies() {
  if (!R.copies) return;
  const flat = value => R.refreshes.map(() => value);
  overTime("copies", [
    ["coreset: has a near-duplicate in the pool", R.copies.coreset, CHOSEN], ["pool", flat(R.copies.pool), "#8a929c", "dash"],
    ["coreset: holds the near-duplicate too", R.copies.repeated, RED],
  ], { yaxis: share });
}
function overlap() {
  if (!document.getElementById("overlap")) return;
  const names = R.refreshes.map((_, i) => String(at(i))), few = names.length * 38 < document.getElementById("overlap").clientWidth - 130;
  const seen = R.overlap.map((row, a) => row.map((value, b) => (a <= b ? value : null)));
  draw("overlap", [{
    type: "heatmap", z: seen, x: names, y: names, zmin: 0, zmax: 1, xgap: 1, ygap: 1, hoverongaps: false,
    colorscale: [[0, "#f3f6f9"], [0.5, "#7fb8d8"], [1, "#005a8c"]], colorbar: { thickness: 10, tickformat: ".0%", outlinewidth: 0 },
    text: few ? seen.map(row => row.map(v => (v === null ? "" : percent(v)))) : undefined, texttemplate: few ? "%{text}" : undefined, textfont: { size: 10 },
    hovertemplate: `%{z:.0%} of the coreset of ${unit} %{x} was in that of ${unit} %{y}<extra></extra>`,
  }], { xaxis: { ...title("later, " + unit), type: "category" }, yaxis: { ...title("earlier, " + unit), type: "category", autorange: "reversed" } });
}
function filtered() {
  if (!R.filters.length) return;
  const x = R.refreshes.map((_, i) => String(at(i)));
  draw("filtered", R.filters.map(({ name }, i) => ({
    type: "bar", name: plain(name), x, y: R.filtered.map(taken => taken[name] ?? 0), marker: { color: [RED, PINK, ORANGE, EARLIER][i % 4] },
    hovertemplate: "%{y:,} rows<extra>" + plain(name) + "</extra>",
  })), { barmode: "stack", xaxis: { ...title(unit), type: "category" }, yaxis: title("rows") });
}
function coverage() {
  if (!R.coverage.share.length) return;
  overTime("coverage", [["has a chosen neighbour", R.coverage.share, CHOSEN], ["mean cosine", R.coverage.mean, ORANGE]], { yaxis: { range: [0, 1.04] } });
  const x = middles(R.coverage.edges);
  draw("near", [{ type: "bar", x, y: R.coverage.near[shown], marker: { color: CHOSEN }, hovertemplate: "%{y:.1%} at %{x:.2f}<extra></extra>" }], { bargap: 0.05, xaxis: title("cosine with the nearest chosen row"), yaxis: share });
}
function approximation() {
  if (!R.approximation.length) return;
  const names = Object.keys(R.approximation[0]).filter(name => name !== "round" && name !== "step");
  draw("approximation", names.map((name, i) => ({
    x: R.approximation.map(a => a.step ?? a.round), y: R.approximation.map(a => a[name]), name: label(name), mode: "lines+markers", line: { color: PALETTE[i % 8], width: 2 },
    hovertemplate: "%{y:.3f}<extra>" + label(name) + "</extra>",
  })), { xaxis: { ...title(unit), range: [0, at(last) * 1.05] }, yaxis: { range: [0, 1.04] } });
}
function loss() {
  const looks = { training: ["#7d8794", "lines"], "held-out": [RED, "lines+markers"], "exact match": [GREEN, "lines+markers"] };
  const refreshes = unit === "step" ? R.refreshes.map(r => ({ type: "line", x0: r.step, x1: r.step, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: LINE, width: 1 } })) : [];
  draw("loss", Object.entries(R.loss).map(([name, points]) => ({
    x: points.map(p => p[0]), y: points.map(p => p[1]), name, mode: points.length > 1 ? looks[name][1] : "markers", line: { color: looks[name][0], width: 2 }, marker: { size: 7 },
    hovertemplate: "step %{x}: %{y:.3f}<extra>" + name + "</extra>",
  })).concat(R.spikes.length ? [{ x: R.spikes.map(s => s.step), y: R.spikes.map(s => s.loss), name: "stood out", mode: "markers", marker: { symbol: "x", size: 9, color: ORANGE }, hovertemplate: "step %{x}: %{y:.3f}<extra>stood out</extra>" }] : []), { showlegend: true, xaxis: title("step"), yaxis: { rangemode: "tozero" }, shapes: unit === "step" ? [...refreshes, ...marker(at(shown))] : [] });
}
function sourceLosses() {
  if (!R.source_losses) return;
  overTime("source-losses", R.source_losses.names.slice(0, 8).map((name, i) => [plain(name.slice(0, 24)), R.source_losses.selections.map(one => (one ? one[i] : null)), PALETTE[i]]), { yaxis: { rangemode: "tozero" } });
}
function curves() {
  if (!R.compare?.curves) return;
  draw("curves", R.compare.curves.map((arm, i) => ({
    x: arm.flops, y: arm.loss, name: plain(arm.arm), mode: "lines+markers", line: { color: PALETTE[i % 8], width: 2 }, marker: { size: 6, symbol: i },
    error_y: { array: arm.error, thickness: 1, width: 2 }, hovertemplate: "%{x:.2e} FLOPs: %{y:.3f}<extra>" + plain(arm.arm) + "</extra>",
  })), { xaxis: { ...title("FLOPs"), type: "log", dtick: "D2", exponentformat: "power", minorloglabels: "complete" }, yaxis: {} });
}
function said() {
  const home = document.getElementById("said"), now = R.said[shown] ?? {};
  if (!home) return;
  const number = value => Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(4);
  home.replaceChildren(...Object.entries(now).filter(([, value]) => typeof value !== "object").map(([name, value]) => {
    const row = document.createElement("tr");
    for (const text of [label(name), typeof value === "number" ? number(value) : value]) row.appendChild(document.createElement("td")).textContent = text;
    return row;
  }));
  const curve = [...(now.curve ?? [])].sort((a, b) => a[0] - b[0]);
  draw("curve", [
    { x: curve.map(p => p[0]), y: curve.map(p => p[1]), name: "tried", mode: "lines+markers", line: { color: CHOSEN, width: 2 }, marker: { size: 7 }, hovertemplate: "α %{x:.3f}: %{y:.4g}<extra></extra>" },
    { x: curve.filter(p => p[0] === now.alpha).map(p => p[0]), y: curve.filter(p => p[0] === now.alpha).map(p => p[1]), name: "taken", mode: "markers", marker: { color: RED, size: 12, symbol: "diamond" }, hovertemplate: "taken: α %{x:.3f}<extra></extra>" },
  ], { showlegend: true, xaxis: { ...title("α"), range: [-0.02, 1.02] } });
}
const MOVING = [map, components, sources, lengths, copies, coverage, said, loss, sourceLosses], STILL = [overlap, filtered, approximation, curves];
