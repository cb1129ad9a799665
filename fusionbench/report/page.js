// Page: keeps the state in the URL fragment, and draws everything again when it changes.

// A select with data-key is a view's own choice: its key in the fragment, empty where the view decides itself.
const SELECTS = [...document.querySelectorAll("select[data-key]")];
const state = { chosen: {}, condition: null, shape: null, by: "strategy", choices: {}, find: "", sort: "", descending: false, theme: "" };

function readFragment() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  state.chosen = {};
  for (const name of D.facets) {
    const known = new Set(D.columns[name].values.map(String));
    const values = wanted.getAll(name).filter((v) => known.has(v));
    if (values.length) state.chosen[name] = new Set(values);
  }
  state.condition = wanted.get("condition");
  state.shape = wanted.get("shape");
  state.by = wanted.get("by") === "backend" ? "backend" : "strategy";
  state.choices = {};
  for (const { dataset: { key }, options } of SELECTS) if ([...options].some((o) => o.value === wanted.get(key))) state.choices[key] = wanted.get(key);
  state.find = wanted.get("find") || "";
  state.sort = COLUMNS.some((c) => c.name === wanted.get("sort")) ? wanted.get("sort") : "";
  state.descending = wanted.get("order") === "desc";
  state.theme = ["light", "dark"].includes(wanted.get("theme")) ? wanted.get("theme") : "";
}

function writeFragment() {
  const wanted = new URLSearchParams();
  for (const [name, values] of Object.entries(state.chosen)) for (const v of values) wanted.append(name, v);
  for (const [name, v] of Object.entries({ condition: state.condition, shape: state.shape, ...state.choices, find: state.find, sort: state.sort, theme: state.theme })) if (v) wanted.set(name, v);
  if (state.by !== "strategy") wanted.set("by", state.by);
  if (state.sort && state.descending) wanted.set("order", "desc");
  const text = wanted.toString();
  if (text !== location.hash.slice(1)) history.replaceState(null, "", `#${text}`);
}

const CHIPS = 60; // of one facet; an axis may have thousands of values
const OPTIONS = 500; // of one list to choose from
const seek = {}; // what is looked for among the values of a long facet
let counted = {};

function drawFacets(counts) {
  counted = counts;
  const box = $("#facets");
  const held = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.chip : null;
  for (const name of D.facets) {
    const facet = $(`[data-facet="${name}"]`, box) ?? facetNode(name);
    if (!facet.isConnected) box.append(facet);
    drawChips(facet, name);
  }
  if (held) [...box.querySelectorAll(".chip")].find((chip) => chip.dataset.chip === held)?.focus({ preventScroll: true });
}

function facetNode(name) {
  const long = D.order[name].length > CHIPS;
  const find = long ? node("input", { type: "search", placeholder: "find a value…", "aria-label": `Find a value of ${LABELS[name]}`, autocomplete: "off", spellcheck: "false" }) : null;
  const facet = node("fieldset", { class: "facet", "data-facet": name }, node("legend", {}, LABELS[name]), find, node("div", { class: D.order[name].length > 40 ? "chips many" : "chips" }));
  find?.addEventListener("input", () => { seek[name] = find.value.trim().toLowerCase(); drawChips(facet, name); });
  return facet;
}

// Of many values the chosen ones and those with the most rows that match, in the axis' own order.
function shownCodes(name) {
  const { values } = D.columns[name], counts = counted[name], order = D.order[name];
  if (order.length <= CHIPS) return [order, 0];
  const chosen = (c) => Boolean(state.chosen[name] && state.chosen[name].has(String(values[c])));
  const found = order.filter((c) => chosen(c) || !seek[name] || String(values[c]).toLowerCase().includes(seek[name]));
  const first = new Set([...found].sort((a, b) => chosen(b) - chosen(a) || counts[b] - counts[a]).slice(0, CHIPS));
  return [found.filter((c) => first.has(c)), found.length - first.size];
}

function drawChips(facet, name) {
  const { values } = D.columns[name], [codes, left] = shownCodes(name);
  $(".chips", facet).replaceChildren(...codes.map((c) => {
    const label = String(values[c] === "" ? "none" : values[c]);
    const on = Boolean(state.chosen[name] && state.chosen[name].has(String(values[c])));
    const mark = name === "strategy" ? icon(c) : name === "backend" && state.by === "backend" ? dashIcon(c) : null;
    return node("button", { type: "button", class: "chip", "data-chip": `${name}=${values[c]}`, "aria-pressed": String(on), disabled: !on && counted[name][c] === 0, onclick: () => toggle(name, String(values[c])) },
      mark, breakable(name === "environment" ? environmentName(values[c]) : label), node("span", { class: "count" }, thousands(counted[name][c])));
  }), ...(left ? [node("p", { class: "fine more" }, `and ${thousands(left)} more`)] : []));
}

function environmentName(id) {
  const found = D.environments.find((e) => e.id === id);
  return found ? found.machine : id;
}

function toggle(name, v) {
  const set = state.chosen[name] || (state.chosen[name] = new Set());
  if (!set.delete(v)) set.add(v);
  if (!set.size) delete state.chosen[name];
  update();
}

function fill(select, options, chosen) {
  const kept = options.filter(([v], i) => i < OPTIONS || v === chosen);
  select.replaceChildren(...kept.map(([v, label]) => node("option", { value: v }, label)));
  select.value = chosen;
  select.closest("label").hidden = options.length < 2;
}

const shapeId = (cell) => `${cell.image}x${cell.text}`;

// What the charts look at: one condition, never an average over several.
function look(rows) {
  const conditions = summariseConditions(rankCells(rows, state.by));
  const names = new Map(conditions.map((c) => [c.id, conditionName(c.first)]));
  const condition = conditions.find((c) => names.get(c.id) === state.condition) || conditions[0];
  const cells = condition ? [...condition.cells].sort((a, b) => a.image - b.image || a.text - b.text) : [];
  const shape = cells.find((c) => shapeId(c) === state.shape) || (condition ? condition.main : null);
  fill($("#condition"), conditions.map((c) => [names.get(c.id), names.get(c.id)]), condition ? names.get(condition.id) : "");
  fill($("#shape"), cells.map((c) => [shapeId(c), `${thousands(c.image)} × ${thousands(c.text)}`]), shape ? shapeId(shape) : "");
  $("#by").value = state.by;
  const pick = (cell) => { state.shape = shapeId(cell); update(); };
  return { rows, conditions, condition, cells, shape, choices: state.choices, pick, by: state.by };
}

function drawAnswer(view) {
  const parts = view.shape ? headline(view.shape) : ["No job matches these filters."];
  $("#headline").replaceChildren(...parts.map((part) => (typeof part === "string" ? part : part.b ? node("strong", {}, breakable(part.b)) : part.name ? breakable(part.name) : node("span", { class: "soft" }, node("bdi", {}, part.soft)))));
  $("#subline").textContent = view.shape ? `${conditionName(view.shape.first)}.` : "";
  const others = [...groupBy(view.conditions.filter((c) => c.timed), (c) => `${value("dtype", c.first)}|${value("device", c.first)}|${value("mode", c.first)}`).values()].map((g) => g[0]);
  const box = $("#conditions");
  box.hidden = others.length < 2;
  if (box.hidden) return;
  const lines = others.slice(0, 8).map((c) => {
    const [winner, second] = c.main.ranked;
    const margin = second === undefined ? "alone" : c.main.ties.length ? `≈ ${cut(candidateName(second), 50)}` : `${times(ratio(winner, second).value)} faster than ${cut(candidateName(second), 50)}`;
    return node("tr", {}, node("th", { scope: "row" }, node("button", { type: "button", class: "link", onclick: () => { state.condition = conditionName(c.first); state.shape = null; update(); } }, mainCondition(c.first).join(" · ")), node("div", { class: "fine" }, otherConditions(c.first).join(" · "))),
      node("td", { class: "soft" }, `${thousands(c.main.image)} × ${thousands(c.main.text)}`),
      node("td", { class: "wrap" }, node("span", { class: "who" }, icon(code("strategy", winner)), breakable(candidateName(winner)))), node("td", { class: "right" }, duration(number("median_ms", winner))), node("td", { class: "soft wrap" }, breakable(margin)));
  });
  box.replaceChildren(node("table", { class: "plain" }, node("thead", {}, node("tr", {}, ...["Condition", "Image × text", "Fastest", "Median", "Margin"].map((t) => node("th", { scope: "col", class: t === "Median" ? "right" : "" }, t)))), node("tbody", {}, ...lines)));
}

function withStatus(rows, wanted) {
  const { codes, values } = D.columns.status, hit = values.map((v) => wanted.includes(v));
  return Array.from(rows.filter((row) => hit[codes[row]]));
}

function drawFailures(rows) {
  const failed = withStatus(rows, FAILED);
  $("#failed").hidden = !failed.length;
  const kinds = [...groupBy(failed, (row) => `${code("status", row)}|${code("phase", row)}|${code("reason", row)}`).values()].sort((a, b) => b.length - a.length);
  $("#failed .body").replaceChildren(node("p", { class: "summary" }, `${plural(failed.length, "job")} failed in ${plural(kinds.length, "way")}; each command runs one of them again.`),
    ...kinds.slice(0, 60).map((members) => {
      const row = members[0], phase = value("phase", row);
      return node("details", { class: "failure", open: kinds.length <= 3 },
        node("summary", {}, node("span", { class: "badge", "data-status": value("status", row) }, value("status", row)), node("span", { class: "count" }, `${thousands(members.length)}${phase ? ` in ${cut(phase, 60)}` : ""}`), node("bdi", { class: "reason" }, value("reason", row) || "no reason recorded")),
        ...members.slice(0, 5).map((r) => node("code", { class: "command" }, command(r))),
        members.length > 5 ? node("p", { class: "soft" }, `and ${thousands(members.length - 5)} more; filter the table by status “${value("status", row)}” to see them.`) : null);
    }), kinds.length > 60 ? node("p", { class: "soft" }, `and ${kinds.length - 60} more kinds of failure in the table.`) : "");
}

function drawSkips(rows) {
  const skipped = withStatus(rows, ["skipped"]);
  $("#skipped").hidden = !skipped.length;
  const reasons = [...groupBy(skipped, (row) => code("reason", row)).values()].sort((a, b) => b.length - a.length);
  const list = (groups) => node("table", { class: "plain" }, node("tbody", {}, ...groups.map((g) => node("tr", {}, node("td", { class: "right count" }, thousands(g.length)), node("td", {}, node("bdi", {}, value("reason", g[0]) || "no reason recorded"))))));
  $("#skipped .body").replaceChildren(node("p", { class: "summary" }, `${plural(skipped.length, "job")} made no sense and ${skipped.length === 1 ? "was" : "were"} not run: ${plural(reasons.length, "reason")}.`),
    list(reasons.slice(0, 12)), reasons.length > 12 ? node("details", {}, node("summary", {}, `${reasons.length - 12} more reasons`), list(reasons.slice(12, 300))) : "");
}

function drawOnce() {
  const e = D.environments[0];
  const measured = D.ok.reduce((a, b) => a + b, 0);
  const begun = earliest("started_at");
  const machine = D.environments.length > 1 ? plural(D.environments.length, "environment") : e ? [e.machine, ...D.columns.hardware.values, `torch ${e.torch}`].filter(Boolean).join(" · ") : "unknown machine";
  $("#facts").textContent = [machine, begun.slice(0, 10), `${thousands(measured)} of ${plural(D.rows, "job")} measured`, D.superseded ? `${plural(D.superseded, "older record")} left out` : ""].filter(Boolean).join(" · ");
  $("#machines .body").replaceChildren(...D.environments.map((each) => node("dl", { class: "facts-list" }, ...Object.entries(each).filter(([, v]) => v !== "" && v !== null && v !== false && v !== 0)
    .flatMap(([name, v]) => [node("dt", {}, name.replace(/_/g, " ")), node("dd", {}, node("bdi", {}, name === "memory_bytes" ? `${(v / 2 ** 30).toFixed(0)} GiB` : v === true ? "yes" : v))]))));
  $("#machines").hidden = !D.environments.length;
  if (D.ledgers.length) drawClaims();
  $("#damage").hidden = !D.problems.length;
  $("#damage .body").replaceChildren(node("ul", {}, ...D.problems.slice(0, 200).map((p) => node("li", {}, node("bdi", {}, p)))));
}

// Of a column of times, or of texts where one of them was no time.
function earliest(name) {
  const { numbers, values } = D.columns[name];
  if (!numbers) return values.filter(Boolean).sort()[0] ?? "";
  const first = numbers.reduce((a, b) => (b < a ? b : a), Infinity);
  return Number.isFinite(first) ? moment(first) : "";
}

let drawing = null; // charts follow one another, the first one plotly
let current = null; // the view that is wanted; charts of an older one are not drawn to the end

function update() {
  document.documentElement.dataset.theme = state.theme;
  const { rows, counts } = filterRows(state.chosen);
  const view = look(rows);
  current = view;
  window.fusionbenchDrawn = 0;
  writeFragment();
  drawFacets(counts);
  const filtered = Object.keys(state.chosen).length > 0;
  $("#shown").textContent = filtered ? `${thousands(rows.length)} of ${thousands(D.rows)} jobs` : plural(D.rows, "job");
  $("#reset").hidden = !filtered && !state.find;
  drawAnswer(view);
  drawFailures(rows);
  drawSkips(rows);
  showTable(rows, state);
  drawing ??= charting();
  const left = Object.entries(VIEWS);
  const first = drawing.then(() => drawFirst(view, left));
  drawing = first.then(() => drawRest(view, left));
  return first;
}

// Until one of them has something to show.
async function drawFirst(view, left) {
  for (let shown = false; left.length && !shown;) {
    const [id, draw] = left.shift();
    await draw(view);
    shown = !$(`#${id}`).hidden;
  }
}

// The browser paints and answers between two charts.
async function drawRest(view, left) {
  for (const [, draw] of left) {
    await new Promise((go) => setTimeout(go));
    if (view !== current) return;
    await draw(view);
  }
  window.fusionbenchDrawn = performance.now();
}

function listen() {
  const on = (selector, event, act) => $(selector).addEventListener(event, act);
  on("#condition", "change", (e) => { state.condition = e.target.value; state.shape = null; update(); });
  on("#shape", "change", (e) => { state.shape = e.target.value; update(); });
  for (const select of SELECTS) select.addEventListener("change", () => { state.choices[select.dataset.key] = select.value; update(); });
  on("#by", "change", (e) => { state.by = e.target.value; update(); });
  on("#reset", "click", () => { state.chosen = {}; state.find = ""; $("#find").value = ""; update(); });
  on("#csv", "click", () => save(csvLines(), "fusionbench.csv", "text/csv"));
  on("#json", "click", () => save(jsonLines(), "fusionbench.json", "application/json"));
  on("#detail [data-close]", "click", () => $("#detail").close());
  on("#theme", "click", () => {
    const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    state.theme = dark ? "light" : "dark";
    update();
  });
  on(".skip", "click", (e) => { e.preventDefault(); $("#table").scrollIntoView(); $("#table .rows").focus(); });
  let typing = 0;
  on("#find", "input", (e) => { clearTimeout(typing); typing = setTimeout(() => { state.find = e.target.value; writeFragment(); $("#reset").hidden = false; showTable(filterRows(state.chosen).rows, state); }, 120); });
  addEventListener("hashchange", () => { readFragment(); $("#find").value = state.find; update(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  let width = innerWidth;
  addEventListener("resize", () => { if ((innerWidth < 600) !== (width < 600)) update(); width = innerWidth; });
  let theme = "";
  addEventListener("beforeprint", () => { theme = state.theme; state.theme = "light"; update(); });
  addEventListener("afterprint", () => { state.theme = theme; update(); });
}

async function start() {
  prepare(await unpack("#data"));
  if (innerWidth < 1000) $("#filters").open = false;
  readFragment();
  $("#find").value = state.find;
  buildTable(state, (name) => {
    state.descending = state.sort === name ? !state.descending : false;
    state.sort = name;
    writeFragment();
    showTable(filterRows(state.chosen).rows, state);
  });
  drawOnce();
  listen();
  await update();
  window.fusionbenchReady = performance.now();
}

start().catch((error) => {
  $("#facts").textContent = `This page could not read its results: ${error.message}`;
  throw error;
});
