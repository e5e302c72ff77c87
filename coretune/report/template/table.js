"use strict";
// Rows as cards. Texts reach the page only as textContent.
const PAGE = 25;
let most = PAGE;
const el = (tag, className, text) => { const node = document.createElement(tag); if (className) node.className = className; if (text !== undefined) node.textContent = text; return node; };
const number = value => (value === null || value === undefined ? "–" : Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(+value.toPrecision(4)));
const isIn = (state, i) => state.rank[i] !== null && state.rank[i] >= 0;
const HAY = R.rows.id.map((id, i) => [id, R.rows.source[i] ?? "", R.rows.prompt[i], R.rows.response[i]].join("\n").toLowerCase());
const PLACE = new Map(R.rows.id.map((id, i) => [id, i]));
const brief = text => (text.length > 120 ? text.slice(0, 119) + "…" : text);
const TIMES = R.rows.id.map((_, i) => R.states.filter(state => isIn(state, i)).length);

function verdict(i) {
  const state = R.states[shown];
  if (state.rank[i] === null) return "not recorded at this selection";
  if (isIn(state, i)) return `chosen, number ${state.rank[i] + 1}, worth ${number(state.gain[i])}`;
  if (state.excluded[i]) return "may not be chosen: " + state.excluded[i];
  const taker = state.filtered[i], why = taker && R.filters.find(filter => filter.name === taker)?.says;
  const first = taker ? "filtered out by " + taker + (why ? ", " + why : "") : "not chosen";
  if (!state.representative[i]) return first;
  return state.closeness[i] === null ? `${first}; ${state.representative[i]} represents it` : `${first}; ${state.representative[i]} is the nearest chosen row, cosine ${state.closeness[i].toFixed(3)}`;
}
// The text of the chosen row that represents this one; null where there is none, or it was chosen itself.
function standIn(i) {
  const name = isIn(R.states[shown], i) ? null : R.states[shown].representative[i], there = PLACE.get(name);
  if (!name) return null;
  const text = there === undefined ? own(R.representatives, name) : brief(R.rows.prompt[there]) + " → " + brief(R.rows.response[there]);
  return text ? `${name}: ${text}` : null;
}
function parts(i) {
  const list = el("div", "parts"), state = R.states[shown];
  for (const [name, values] of Object.entries(state.components)) {
    if (R.codes.includes(name) || values[i] === null) continue;  // the verdict says those
    if (R.of_chosen.includes(name) && !isIn(state, i)) continue;
    const part = el("span");
    part.title = own(R.meaning, name) ?? "";
    part.append(el("em", "", label(name)), document.createTextNode(number(values[i])));
    list.append(part);
  }
  return list;
}
function dots(i) {
  const home = el("div", "dots");
  R.states.forEach((state, s) => {
    const dot = el("i", (state.rank[i] === null ? "unknown" : isIn(state, i) ? "in" : "") + (s === shown ? " now" : ""));
    dot.title = `${unit} ${at(s)}: ${state.rank[i] === null ? "not recorded" : isIn(state, i) ? "chosen" : "not chosen"}`;
    home.append(dot);
  });
  return home;
}
const measured = i => (R.states[shown].measured[i] === null ? "" : R.states[shown].measured[i] ? " · measured now" : " · not measured now");
const meta = i => [R.rows.source[i], R.rows.tokens[i] + " tokens", R.rows.copies[i] ? R.rows.copies[i] + (R.rows.copies[i] > 1 ? " copies" : " copy") : null].filter(Boolean).join(" · ") + measured(i);

function card(i) {
  const line = el("div", "line" + (isIn(R.states[shown], i) ? " in" : "")), head = el("div"), text = el("div", "text"), why = el("div", "why");
  head.append(el("div", "id", R.rows.id[i]), el("div", "meta", meta(i)), dots(i));
  text.append(el("div", "", R.rows.prompt[i]), el("div", "answer", "→ " + R.rows.response[i]));
  why.append(el("p", "verdict", verdict(i)));
  if (standIn(i)) why.append(el("p", "stands", standIn(i)));
  why.append(parts(i));
  line.append(head, text, why);
  return line;
}
function tell(i) {
  const home = document.getElementById("row"), block = (name, value) => { const p = el("p", "text"); p.append(el("b", "", name), document.createTextNode(value)); return p; };
  home.replaceChildren(el("h3", "", R.rows.id[i]), el("p", "meta", meta(i)), block("prompt", R.rows.prompt[i]), block("response", R.rows.response[i]), block("this selection", verdict(i)), ...(standIn(i) ? [block("represented by", standIn(i))] : []), parts(i), dots(i));
}

const ORDERS = { "rank, then times chosen": i => (isIn(R.states[shown], i) ? R.states[shown].rank[i] : 1e9 - TIMES[i]), "times chosen": i => -TIMES[i], "tokens, most first": i => -R.rows.tokens[i], id: i => i };
function found() {
  const words = document.getElementById("search").value.toLowerCase(), filter = document.getElementById("filter").value, order = document.getElementById("order").value;
  const keep = { "": () => true, chosen: i => isIn(R.states[shown], i), not: i => !isIn(R.states[shown], i), ever: i => TIMES[i] > 0, never: i => TIMES[i] === 0 }[filter];
  const key = own(ORDERS, order) ?? (i => -(own(R.states[shown].components, order)?.[i] ?? -Infinity));
  return R.rows.id.map((_, i) => i).filter(i => keep(i) && (!words || HAY[i].includes(words))).sort((a, b) => key(a) - key(b) || a - b);
}
function table() {
  const rows = found();
  document.getElementById("count").textContent = `${rows.length.toLocaleString("en")} of ${R.rows.id.length.toLocaleString("en")} rows`;
  document.getElementById("table").replaceChildren(...rows.slice(0, most).map(card));
  document.getElementById("more").hidden = rows.length <= most;
}
function setUpTable() {
  const order = document.getElementById("order");
  const names = new Set(R.states.flatMap(state => Object.keys(state.components)));
  for (const name of Object.keys(ORDERS)) order.append(new Option(name, name));
  for (const name of names) if (!R.codes.includes(name)) order.append(new Option("most " + label(name), name));
  for (const id of ["search", "filter", "order"]) document.getElementById(id).addEventListener("input", () => { most = PAGE; table(); });
  document.getElementById("more").addEventListener("click", () => { most += 4 * PAGE; table(); });
}
