// The history page: jobs by how much they changed; a chart is drawn when its job is opened.

const PAGE = 100; // jobs that are listed at once
const state = { find: "", sort: "", theme: "", open: new Set(), listed: PAGE };

function readFragment() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  state.find = wanted.get("find") || "";
  state.sort = ["key", "time"].includes(wanted.get("sort")) ? wanted.get("sort") : "";
  state.theme = ["light", "dark"].includes(wanted.get("theme")) ? wanted.get("theme") : "";
  state.open = new Set(wanted.getAll("job"));
}

function writeFragment() {
  const wanted = new URLSearchParams();
  for (const [name, v] of Object.entries({ find: state.find, sort: state.sort, theme: state.theme })) if (v) wanted.set(name, v);
  for (const id of [...state.open].slice(0, 20)) wanted.append("job", id);
  const text = wanted.toString();
  if (text !== location.hash.slice(1)) history.replaceState(null, "", `#${text}`);
}

function matching() {
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  const found = D.trends.series.filter((s) => words.every((word) => identity(s).toLowerCase().includes(word)));
  const time = (s) => (lastTime(s) < 0 ? -1 : s.ns[0][lastTime(s)]);
  if (state.sort === "key") return [...found].sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
  return state.sort === "time" ? [...found].sort((a, b) => time(b) - time(a)) : found;
}

let drawing = Promise.resolve();

function drawList() {
  const found = matching(), shown = found.slice(0, state.listed);
  $("#list").replaceChildren(...shown.map(jobNode));
  $("#more").hidden = shown.length === found.length;
  $("#jobs .summary").textContent = state.find ? `${plural(found.length, "job")} of ${thousands(D.trends.series.length)}.` : `${plural(found.length, "job")}; open one for its chart.`;
  writeFragment();
  queue(() => null);
}

function drawOnce() {
  const moved = D.trends.series.filter((s) => s.changes.length), facts = D.trends.series.filter((s) => s.steps.length), dates = D.trends.runs.map((r) => r.measured_at).filter(Boolean);
  const machines = [...new Set(D.trends.series.map((s) => s.machine).filter(Boolean))];
  $("#facts").textContent = [plural(D.trends.runs.length, "run"), dates.length ? `${dates[0].slice(0, 10)} to ${dates.at(-1).slice(0, 10)}` : "", machines.length === 1 ? machines[0] : machines.length ? plural(machines.length, "machine") : ""].filter(Boolean).join(" · ");
  const judged = D.trends.series.filter((s) => s.segments.some((g) => !g.reason)).length;
  $("#headline").replaceChildren(...(moved.length ? [node("strong", {}, thousands(moved.length)), ` of ${plural(D.trends.series.length, "job")} took another time from some commit on.`]
    : judged ? [`None of ${plural(judged, "job")} took another time beyond its noise.`] : ["Too few runs to tell a change of time from noise."]));
  const slower = moved.filter((s) => s.changes.at(-1).ratio > 1).length, failing = D.trends.series.filter((s) => FAILED.includes(s.status.at(-1))).length;
  $("#subline").textContent = [moved.length ? `${thousands(slower)} slower, ${thousands(moved.length - slower)} faster at the last change` : "", facts.length ? `status, memory, FLOPs or kernels changed in ${plural(facts.length, "job")}` : "", failing ? `${plural(failing, "job")} failed in the last run` : ""].filter(Boolean).map(sentenceCase).join(". ") + (moved.length || facts.length || failing ? "." : "");
  $("#jobs .caption").textContent = D.trends.note ? `${sentenceCase(D.trends.note)}.` : `A change point has at least ${D.trends.side} runs of one environment on either side, exceeds ${D.trends.tolerance}, and an interval without 1. Facts that no noise moves (status, memory, FLOPs, kernels) are told at the run where they changed.`;
  $("#damage").hidden = !D.problems.length;
  $("#damage .body").replaceChildren(node("ul", {}, ...D.problems.slice(0, 200).map((p) => node("li", {}, node("bdi", {}, p)))));
  const unfinished = (r) => (r.unfinished ? node("td", { class: "unfinished" }, `${thousands(r.jobs)} of ${thousands(r.planned)} jobs begun, unfinished`) : node("td", {}, plural(r.jobs, "job")));
  const lines = [...D.trends.runs].reverse().slice(0, 500).map((r) => node("tr", {}, node("td", {}, (r.measured_at || "unknown").slice(0, 16).replace("T", " ")), node("td", {}, node("bdi", {}, r.commit ? r.commit.slice(0, 10) + (r.dirty ? "+" : "") : "–")), unfinished(r), node("td", {}, node("bdi", {}, r.machines)), node("td", {}, node("bdi", {}, r.name))));
  $("#runs .body").replaceChildren(node("details", { class: "values" }, node("summary", {}, `${plural(D.trends.runs.length, "run")}, newest first`), node("div", { class: "scroll" }, node("table", { class: "plain" },
    node("thead", {}, node("tr", {}, ...["Measured (UTC)", "Commit", "Jobs", "Machine", "Run"].map((h) => node("th", { scope: "col" }, h)))), node("tbody", {}, ...lines)))));
  $("#runs details").open = D.trends.runs.some((r) => r.unfinished);
  $("#machines .body").replaceChildren(...D.environments.map((each) => node("dl", { class: "facts-list" }, ...Object.entries(each).filter(([, v]) => v !== "" && v !== null && v !== false && v !== 0)
    .flatMap(([name, v]) => [node("dt", {}, name.replace(/_/g, " ")), node("dd", {}, node("bdi", {}, name === "memory_bytes" ? `${(v / 2 ** 30).toFixed(0)} GiB` : v === true ? "yes" : v))]))));
}

function redraw() {
  document.documentElement.dataset.theme = state.theme;
  drawList();
}

function listen() {
  const on = (selector, event, act) => $(selector).addEventListener(event, act);
  on("#theme", "click", () => {
    const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    state.theme = dark ? "light" : "dark";
    redraw();
  });
  on("#sort", "change", (e) => { state.sort = e.target.value; drawList(); });
  on("#more", "click", () => { state.listed += PAGE; drawList(); });
  on(".skip", "click", (e) => { e.preventDefault(); $("#jobs").scrollIntoView(); $("#jobs").focus(); });
  let typing = 0;
  on("#find", "input", (e) => { clearTimeout(typing); typing = setTimeout(() => { state.find = e.target.value; state.listed = PAGE; drawList(); }, 120); });
  addEventListener("hashchange", () => { readFragment(); fill(); redraw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = innerWidth;
  addEventListener("resize", () => { if ((innerWidth < 600) !== (width < 600)) redraw(); width = innerWidth; });
  let theme = "";
  addEventListener("beforeprint", () => { theme = state.theme; state.theme = "light"; redraw(); });
  addEventListener("afterprint", () => { state.theme = theme; redraw(); });
}

function fill() {
  $("#find").value = state.find;
  $("#sort").value = state.sort;
}

async function start() {
  D = await unpack("#data");
  readFragment();
  fill();
  drawOnce();
  listen();
  redraw();
  window.fusionbenchReady = performance.now();
}

start().catch((error) => {
  $("#facts").textContent = `This page could not read its history: ${error.message}`;
  throw error;
});
