// Runs a page's own scripts without a browser: node page_stubs.js PAGE.html. Prints what it drew and told, as JSON.
const fs = require("fs"), page = fs.readFileSync(process.argv[2], "utf8"), drawn = Object.create(null);
const scripts = [...page.matchAll(/<script>([\s\S]*?)<\/script>/g)].map(match => match[1].replace('"use strict";', "")).slice(1);  // the first is plotly's
const none = () => {};
const element = id => ({
  id, style: {}, dataset: {}, value: "", clientWidth: 900, classList: { add: none }, append: none, appendChild: () => element(), addEventListener: none, on: none,
  replaceChildren: none, querySelectorAll: () => [],
});
const known = { facts: { textContent: page.match(/<script id="facts"[^>]*>([\s\S]*?)<\/script>/)[1] } };
Object.assign(globalThis, {
  document: {
    body: {}, documentElement: element(), createElement: () => element(), createTextNode: none, querySelector: () => element(), querySelectorAll: () => [],
    getElementById: id => (known[id] ??= element(id)),
  },
  matchMedia: () => ({ matches: true }), getComputedStyle: () => ({}), addEventListener: none, innerWidth: 1000, Option: function () {},
  Plotly: { react: (node, traces, layout) => { drawn[node.id] = { text: traces[0]?.text, ticks: layout.yaxis?.ticktext, notes: layout.annotations?.map(note => note.text) }; } },
});
const told = new Function(scripts.join("\n") + "; return R.rows.id.map((_, i) => [verdict(i), standIn(i), tell(i)]);")();
setTimeout(() => console.log(JSON.stringify({ drawn, told })), 500);
