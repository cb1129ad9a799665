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

const several = () => new Set(D.series.map((s) => s.machine)).size > 1;
const identity = (s) => (several() ? `${s.key} on ${s.machine}` : s.key);
const changed = (s) => s.changes.length + s.steps.length > 0;
const lastTime = (s) => s.segments.reduce((best, g) => Math.max(best, g.points.at(-1)), -1);

function matching() {
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  const found = D.series.filter((s) => words.every((word) => identity(s).toLowerCase().includes(word)));
  const time = (s) => (lastTime(s) < 0 ? -1 : s.ns[0][lastTime(s)]);
  if (state.sort === "key") return [...found].sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
  return state.sort === "time" ? [...found].sort((a, b) => time(b) - time(a)) : found;
}

// As in the terminal: at least a fifth of its height is always in sight, so that noise looks flat.
function spark(s) {
  const box = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  const judged = s.segments.map((g) => g.points.map((i) => [i, (g.even ? s.even : s.ns)[0][i]]));
  const all = judged.flat().map(([, v]) => v);
  if (!all.length) return box;
  const low = Math.min(...all), high = Math.max(...all, low * 1.2), last = Math.max(1, s.at.length - 1);
  const x = (i) => ((i / last) * 100).toFixed(1), y = (v) => (27 - (24 * (v - low)) / (high - low || 1)).toFixed(1);
  const upright = (i, kind) => svg("path", { class: kind, d: `M${x(i - 0.5)} 0V30` });
  box.append(
    ...s.segments.filter((g) => g.differences.length).map((g) => upright(g.points[0], "moved")),
    ...s.changes.map((c) => upright(c.at, c.ratio > 1 ? "change" : "change faster")),
    ...judged.map((points) => svg("path", { class: "line", d: points.map(([i, v], k) => `${k ? "L" : "M"}${x(i)} ${y(v)}`).join("") + (points.length === 1 ? "h.5" : "") })));
  return box;
}

const sizeNode = (change) => node("span", { class: change.ratio > 1 ? "slower" : "faster" }, node("span", { class: "mark" }, changeMark(change)), change.size, " ", node("span", { class: "soft" }, day(change.when)));

function whatNode(s) {
  const facts = [...new Set(s.steps.map((p) => p.fact.replace("peak_bytes", "memory")))];
  const shown = s.changes.slice(-2).map((c) => sizeNode({ ...c, when: s.at[c.at] }));
  if (s.changes.length > 2) shown.unshift(node("span", { class: "soft" }, plural(s.changes.length - 2, "earlier change")));
  if (facts.length) shown.push(node("span", {}, node("span", { class: "mark" }, facts.includes("status") ? "✕" : "●"), facts.join(", ")));
  return node("span", { class: "what" }, ...shown);
}

function jobNode(s) {
  const status = s.status.at(-1), failing = FAILED.includes(status);
  const job = node("details", { class: "job" }, node("summary", {},
    node("span", { class: "name" }, breakableKey(s.key), several() && s.machine ? node("div", { class: "machine" }, node("bdi", {}, s.machine)) : null),
    node("span", { class: "trend" }, spark(s)), node("span", { class: "count right" }, thousands(s.at.length)),
    node("span", { class: "right", "data-status": failing ? status : null }, failing ? status : s.last || "–"),
    node("span", { class: "right since" }, s.since ? s.since.text : ""), whatNode(s)));
  job.addEventListener("toggle", () => toggled(s, job));
  job.open = state.open.has(identity(s));
  return job;
}

const breakableKey = (key) => node("bdi", {}, ...cut(key, 300).split(/(?<=[/_-])/).flatMap((part) => [part, node("wbr")]));

let drawing = Promise.resolve();

function toggled(s, job) {
  if (job.open) state.open.add(identity(s)); else state.open.delete(identity(s));
  writeFragment();
  const body = $(".body", job);
  if (!job.open) { if (body) { const chart = $(".chart", body); if (chart && chart.data) Plotly.purge(chart); body.remove(); } return; }
  if (body) return;
  job.append(bodyNode(s));
  queue(() => charting().then(() => (job.open && job.isConnected ? drawJob(s, $(".chart", job)) : null)));
}

function queue(draw) {
  window.fusionbenchDrawn = 0;
  const mine = (drawing = drawing.then(() => new Promise((go) => setTimeout(go))).then(draw).finally(() => { if (mine === drawing) window.fusionbenchDrawn = performance.now(); }));
}

function summaryText(s) {
  const at = lastTime(s), parts = [`${plural(s.at.length, "run")} from ${day(s.at[0])} to ${day(s.at.at(-1))}.`];
  if (at >= 0) parts.push(`Last time ${duration(s.ns[0][at])} [${duration(s.ns[1][at])} – ${duration(s.ns[2][at])}]${s.since ? `, ${s.since.text} since the first${s.segments.length > 1 ? " in this environment" : ""}` : ""}.`);
  if (FAILED.includes(s.status.at(-1))) parts.push(`The last run ended as ${s.status.at(-1)}.`);
  const reason = s.segments.length ? s.segments.at(-1).reason : "nothing was timed";
  parts.push(s.changes.length ? `${plural(s.changes.length, "change point")}.` : reason ? sentenceCase(`${reason}.`) : "No change point.");
  return parts.join(" ");
}

const sentenceCase = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function bodyNode(s) {
  const summary = summaryText(s);
  const moves = s.segments.filter((g) => g.differences.length).map((g) => ["⌂", "soft", `another environment from ${day(s.at[g.points[0]])} on: ${g.differences.join(", ")}`]);
  const found = [...s.changes.map((c) => [changeMark(c), c.ratio > 1 ? "slower" : "faster", c.text]), ...s.steps.slice(-20).map((p) => [FACT_MARKS[p.fact], "", p.text]), ...moves];
  const timed = s.segments.length > 0;
  const values = node("details", { class: "values" }, node("summary", {}, "Show as table"));
  values.addEventListener("toggle", () => { if (values.open && !$("table", values)) values.append(node("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All runs of this job" }, tableNode(s))); });
  return node("div", { class: "body" }, node("p", { class: "summary" }, summary),
    found.length ? node("ul", { class: "found" }, ...found.map(([mark, kind, text]) => node("li", {}, node("span", { class: `mark ${kind}` }, mark), " ", node("bdi", {}, text)))) : null,
    node("div", { class: "chart", role: "img", hidden: !timed, "aria-label": `Trend of ${cut(s.key, 200)}: ${summary}` }), timed ? legendNode(s) : null, values);
}

function legendNode(s) {
  const sample = (dash, colour) => svg("svg", { viewBox: "0 0 24 12", width: 24, height: 12, "aria-hidden": "true" }, svg("path", { d: "M0 6h24", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
  const entries = s.segments.slice(0, 9).map((g, k) => [icon(k), s.segments.length === 1 ? "median, band: its 95 % interval" : k === 0 ? "first environment, band: 95 % interval" : `with ${g.differences.join(", ")}`]);
  if (s.segments.some((g) => g.even)) entries.push([sample("2 3", "currentColor"), "at the machine's even pace: divided by a control timed beside it"]);
  if (s.changes.length) entries.push(["▲▼", "change point"]);
  if (s.status.some((status) => FAILED.includes(status))) entries.push(["✕", "failed"]);
  return node("div", { class: "legend" }, ...entries.map(([mark, name]) => node("span", { class: "key" }, mark, node("bdi", {}, cut(name, 90)))));
}

function tableNode(s) {
  const heads = ["Measured (UTC)", "Commit", "Status", "Median", "95 % interval", ...(s.even.length ? ["At an even pace"] : []), "Run"];
  const line = (i) => [minute(s.at[i]), s.commit[i] || "–", s.status[i], ...(s.ns.length && s.ns[0][i] !== null ? [duration(s.ns[0][i], 4), `${duration(s.ns[1][i], 4)} – ${duration(s.ns[2][i], 4)}`] : ["–", "–"]),
    ...(s.even.length ? [duration(s.even[0][i], 4)] : []), (D.runs[s.run[i]] || {}).name || ""];
  return node("table", { class: "plain" }, node("thead", {}, node("tr", {}, ...heads.map((h) => node("th", { scope: "col" }, h)))),
    node("tbody", {}, ...s.at.map((_, i) => node("tr", {}, ...line(i).map((text) => node("td", {}, node("bdi", {}, text)))))));
}

function drawList() {
  const found = matching(), shown = found.slice(0, state.listed);
  $("#list").replaceChildren(...shown.map(jobNode));
  $("#more").hidden = shown.length === found.length;
  $("#jobs .summary").textContent = state.find ? `${plural(found.length, "job")} of ${thousands(D.series.length)}.` : `${plural(found.length, "job")}; open one for its chart.`;
  writeFragment();
  queue(() => null);
}

function drawOnce() {
  const moved = D.series.filter((s) => s.changes.length), facts = D.series.filter((s) => s.steps.length), dates = D.runs.map((r) => r.measured_at).filter(Boolean);
  const machines = [...new Set(D.series.map((s) => s.machine).filter(Boolean))];
  $("#facts").textContent = [plural(D.runs.length, "run"), dates.length ? `${dates[0].slice(0, 10)} to ${dates.at(-1).slice(0, 10)}` : "", machines.length === 1 ? machines[0] : machines.length ? plural(machines.length, "machine") : ""].filter(Boolean).join(" · ");
  const judged = D.series.filter((s) => s.segments.some((g) => !g.reason)).length;
  $("#headline").replaceChildren(...(moved.length ? [node("strong", {}, thousands(moved.length)), ` of ${plural(D.series.length, "job")} took another time from some commit on.`]
    : judged ? [`None of ${plural(judged, "job")} took another time beyond its noise.`] : ["Too few runs to tell a change of time from noise."]));
  const slower = moved.filter((s) => s.changes.at(-1).ratio > 1).length, failing = D.series.filter((s) => FAILED.includes(s.status.at(-1))).length;
  $("#subline").textContent = [moved.length ? `${thousands(slower)} slower, ${thousands(moved.length - slower)} faster at the last change` : "", facts.length ? `status, memory, FLOPs or kernels changed in ${plural(facts.length, "job")}` : "", failing ? `${plural(failing, "job")} failed in the last run` : ""].filter(Boolean).map(sentenceCase).join(". ") + (moved.length || facts.length || failing ? "." : "");
  $("#jobs .caption").textContent = D.note ? `${sentenceCase(D.note)}.` : `A change point has at least ${D.side} runs of one environment on either side, exceeds ${D.tolerance}, and an interval without 1. Facts that no noise moves (status, memory, FLOPs, kernels) are told at the run where they changed.`;
  $("#damage").hidden = !D.problems.length;
  $("#damage .body").replaceChildren(node("ul", {}, ...D.problems.slice(0, 200).map((p) => node("li", {}, node("bdi", {}, p)))));
  const unfinished = (r) => (r.unfinished ? node("td", { class: "unfinished" }, `${thousands(r.jobs)} of ${thousands(r.planned)} jobs begun, unfinished`) : node("td", {}, plural(r.jobs, "job")));
  const lines = [...D.runs].reverse().slice(0, 500).map((r) => node("tr", {}, node("td", {}, (r.measured_at || "unknown").slice(0, 16).replace("T", " ")), node("td", {}, node("bdi", {}, r.commit ? r.commit.slice(0, 10) + (r.dirty ? "+" : "") : "–")), unfinished(r), node("td", {}, node("bdi", {}, r.machines)), node("td", {}, node("bdi", {}, r.name))));
  $("#runs .body").replaceChildren(node("details", { class: "values" }, node("summary", {}, `${plural(D.runs.length, "run")}, newest first`), node("div", { class: "scroll" }, node("table", { class: "plain" },
    node("thead", {}, node("tr", {}, ...["Measured (UTC)", "Commit", "Jobs", "Machine", "Run"].map((h) => node("th", { scope: "col" }, h)))), node("tbody", {}, ...lines)))));
  $("#runs details").open = D.runs.some((r) => r.unfinished);
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
