"use strict";
// The slider: one selection for the whole page.
const slider = document.getElementById("slider"), play = document.getElementById("play");
let playing = null;

function say() {
  const r = R.refreshes[shown], parts = [];
  if (r.rows_chosen !== null) parts.push(`${r.rows_chosen.toLocaleString("en")} rows chosen`);
  if (r.overlap !== null) parts.push(`${percent(r.overlap)} of them kept`);
  if (r.rows_measured) parts.push(`${r.rows_measured.toLocaleString("en")} measured in ${r.seconds.toFixed(1)} s`);
  const strong = document.createElement("strong");
  strong.textContent = `Selection ${shown + 1} of ${last + 1}, ${unit} ${at(shown)}`;
  document.getElementById("now").replaceChildren(strong, document.createTextNode(parts.length ? " · " + parts.join(" · ") : ""));
}
function show(i) {
  shown = i;
  slider.value = i;
  say();
  for (const plot of MOVING) plot();
  table();
}
function stop() {
  clearInterval(playing);
  playing = null;
  play.textContent = "▶";
}
slider.addEventListener("input", () => { stop(); show(+slider.value); });
play.addEventListener("click", () => {
  if (playing) return stop();
  play.textContent = "❚❚";
  if (shown === last) show(0);
  playing = setInterval(() => (shown < last ? show(shown + 1) : stop()), 900);
});

// What is seen first is drawn first; the page can be used from then on, and the other plots follow one a task.
if (last === 0) document.querySelector(".refresh").classList.add("single");
setUpTable();
say();
map();
table();
const drawn = document.getElementById("map");
if (drawn) for (const event of ["plotly_hover", "plotly_click"]) drawn.on(event, e => tell(e.points[0].customdata));
document.documentElement.dataset.ready = Math.round(performance.now());
const waiting = [...MOVING.slice(1), ...STILL];
(function next() {
  if (!waiting.length) return (document.documentElement.dataset.drawn = Math.round(performance.now()));
  waiting.shift()();
  setTimeout(next);
})();
addEventListener("beforeprint", () => document.querySelectorAll(".js-plotly-plot").forEach(node => Plotly.Plots.resize(node)));
