// Systems: the presets side by side, each at its own widths and lengths, all at one scale and under one condition.

const SYSTEM_FACTS = [
  { name: "median_ms", title: "Latency", show: (v) => duration(v) }, { name: "peak_mib", title: "Peak memory", show: tickMib },
  { name: "params", title: "Parameters", show: (v) => short(v) }, { name: "flops", title: "FLOPs", show: (v) => short(v) },
  { name: "rel_l2", title: "Rel. error", show: small },
];
const SYSTEM_CONDITION = ["dtype", "device", "mode", "scale", "match", "environment"];
const short = (v, n = 3) => { const [size, unit] = [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"], [1, ""]].find(([s]) => v >= s) || [1, ""]; return `${digits(v / size, n)}${unit}`; };

// A group per condition; a job that failed has no timer and belongs to the first group that agrees in the rest.
function systemGroups(entries) {
  const groups = new Map(), base = (row) => SYSTEM_CONDITION.map((name) => value(name, row)).join("|");
  const add = (key, each) => { if (!groups.has(key)) groups.set(key, { key, entries: [] }); groups.get(key).entries.push(each); };
  for (const each of entries.filter((e) => isOk(e.row))) add(`${base(each.row)}||${["timer", "cache", "threads"].map((name) => value(name, each.row)).join("|")}`, each);
  for (const each of entries.filter((e) => !isOk(e.row))) add([...groups.keys()].find((key) => key.startsWith(`${base(each.row)}||`)) || `${base(each.row)}||`, each);
  return [...groups.values()].sort((a, b) => systemsIn(b) - systemsIn(a));
}

const systemsIn = (group) => new Set(group.entries.map((e) => e.label)).size;

function systemCondition(group, groups) {
  const row = group.entries[0].row, differs = (name) => new Set(groups.map((g) => value(name, g.entries[0].row))).size > 1;
  const scale = value("scale", row), more = ["match", "machine", "timer", "cache", "threads"].filter(differs).map((name) => value(name, row)).filter((v) => v !== null && v !== "");
  return [scale === "1" ? "full size" : `${scale} of their size`, ...mainCondition(row), ...more].join(" · ");
}

// The fastest backend of each system (or each backend), at the preset's own lengths unless others are asked for.
function systemRows(group, by) {
  const entries = state.lengths ? group.entries : group.entries.filter((e) => !e.lengths);
  const time = (e) => (isOk(e.row) ? number("median_ms", e.row) : Infinity);
  const best = new Map();
  for (const each of entries) {
    const key = `${each.label}|${value("strategy", each.row)}|${each.lengths}${by === "backend" ? `|${value("backend", each.row)}` : ""}`;
    if (!best.has(key) || time(each) < time(best.get(key))) best.set(key, each);
  }
  return [...best.values()];
}

function sortSystems(rows) {
  const name = state.sortSystems.replace(/^-/, ""), down = state.sortSystems.startsWith("-");
    const of = (e) => (isOk(e.row) ? value(name, e.row) : null);
  return rows.sort((a, b) => (of(a) === null) - (of(b) === null) || (down ? of(b) - of(a) : of(a) - of(b)));
}

function systemScale(rows, name) {
  const values = rows.filter((e) => isOk(e.row)).map((e) => value(name, e.row)).filter((v) => v > 0);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return (v) => (v > 0 && values.length ? 4 + (92 * Math.log(v / low)) / (Math.log(high / low) || 1) : null);
}

function factCell(fact, entry, at) {
  const v = isOk(entry.row) ? value(fact.name, entry.row) : null, place = v === null ? null : at(v);
  const bars = fact.name === "median_ms" && place !== null ? [svg("line", { x1: `${at(number("low_ms", entry.row))}%`, x2: `${at(number("high_ms", entry.row))}%`, y1: "50%", y2: "50%", class: "bar" })] : [];
  const track = svg("svg", { class: "track", "aria-hidden": "true" }, svg("line", { x1: 0, x2: "100%", y1: "50%", y2: "50%", class: "rail" }), ...bars, ...(place === null ? [] : [svg("circle", { cx: `${place}%`, cy: "50%", r: 4, fill: colourOf(code("strategy", entry.row)) })]));
  return node("td", { class: "fact" }, node("span", { class: v === null ? "soft" : "" }, v === null ? "–" : fact.show(v)), track);
}

function systemNode(entry, scales) {
  const { row } = entry, s = D.systems, title = s.titles[entry.label], departs = [entry.departs, entry.lengths].filter(Boolean).join(", ");
  const failed = isOk(row) ? null : node("div", { class: "fine", "data-status": value("status", row) }, node("bdi", {}, cut(`${value("status", row)}: ${value("reason", row) || "no reason recorded"}`, 200)));
  return node("tr", {}, node("th", { scope: "row" }, node("span", { class: "who" }, icon(code("strategy", row)), node("button", { type: "button", class: "link", onclick: () => openDetail(row) }, breakable(title || s.labels[entry.label]))),
    node("div", { class: "fine" }, node("bdi", {}, [entry.strategy, value("backend", row), value("treatment", row), `${thousands(value("image", row))} × ${thousands(value("text", row))} tokens`].filter(Boolean).join(" · "))),
    departs ? node("div", { class: "fine departs" }, "departs from the preset: ", node("bdi", {}, departs)) : null, failed),
  ...SYSTEM_FACTS.map((fact, k) => factCell(fact, entry, scales[k])));
}

function systemsSummary(rows, condition) {
  const timed = rows.filter((e) => isOk(e.row)), name = (e) => D.systems.titles[e.label] || D.systems.labels[e.label];
  if (!timed.length) return "None of these systems was timed under these filters.";
  const end = (fact, pick) => timed.filter((e) => value(fact, e.row) !== null).sort((a, b) => pick * (value(fact, a.row) - value(fact, b.row)))[0];
  const [fast, slow, lean] = [end("median_ms", 1), end("median_ms", -1), end("peak_mib", 1)];
  return `${plural(new Set(timed.map((e) => e.label)).size, "system")}, ${condition}. Fastest: ${name(fast)} (${duration(number("median_ms", fast.row))})`
    + (slow === fast ? "" : `; slowest: ${name(slow)} (${duration(number("median_ms", slow.row))}), ${times(number("median_ms", slow.row) / number("median_ms", fast.row))} as long`) + (lean ? `; least memory: ${name(lean)} (${tickMib(number("peak_mib", lean.row))}).` : ".");
}

function drawSystems(rows, by) {
  const card = $("#systems"), s = D.systems;
  card.hidden = !s.row;
  if (card.hidden) return;
  const wanted = new Uint8Array(D.rows);
  for (const row of rows) wanted[row] = 1;
  const entries = s.row.map((row, k) => ({ row, label: s.label[k], strategy: s.strategy[k], departs: s.departs[k], lengths: s.lengths[k] })).filter((e) => wanted[e.row]);
  const groups = systemGroups(entries), names = groups.map((group) => systemCondition(group, groups)), at = Math.max(0, names.indexOf(state.system));
  fill($("#systems-condition"), names.map((name) => [name, name]), names[at] ?? "");
  const group = groups[at], others = group ? group.entries.filter((e) => e.lengths).length : 0, own = group ? group.entries.length - others : 0;
  if (!own && others) state.lengths = true;
  if (!SYSTEM_FACTS.some((fact) => fact.name === state.sortSystems.replace(/^-/, ""))) state.sortSystems = "median_ms";
  $("#systems-lengths").checked = state.lengths;
  $("#systems-lengths").closest("label").hidden = !others || !own;
  const shown = group ? sortSystems(systemRows(group, by)) : [], scales = SYSTEM_FACTS.map((fact) => systemScale(shown, fact.name));
  $(".summary", card).textContent = group ? systemsSummary(shown, names[at]) : "No system matches these filters.";
  const head = (fact) => node("th", { scope: "col", "aria-sort": state.sortSystems === fact.name ? "ascending" : state.sortSystems === `-${fact.name}` ? "descending" : "none" }, node("button", { type: "button", class: "link", "data-systems": fact.name, onclick: () => { state.sortSystems = state.sortSystems === fact.name ? `-${fact.name}` : fact.name; writeFragment(); drawSystems(rows, by); $(`[data-systems="${fact.name}"]`, card).focus(); } }, fact.title));
  $(".systems-wrap", card).replaceChildren(shown.length ? node("table", { class: "plain" }, node("thead", {}, node("tr", {}, node("th", { scope: "col" }, "System"), ...SYSTEM_FACTS.map(head))), node("tbody", {}, ...shown.slice(0, 300).map((entry) => systemNode(entry, scales)))) : "");
  $("#systems-condition").onchange = (event) => { state.system = event.target.value; writeFragment(); drawSystems(rows, by); };
  $("#systems-lengths").onchange = (event) => { state.lengths = event.target.checked; writeFragment(); drawSystems(rows, by); };
}
