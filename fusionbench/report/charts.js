// Charts: one function per view; each draws itself, its summary, its legend and its caption, or says why it is empty.
// A chart has at most one point per candidate and length (or dtype): hundreds, where SVG is good for 10,000.

// Okabe & Ito (2008): distinct for colour-blind readers. 7 colours and 9 symbols meet again after 63 strategies.
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C7A00"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down"];
const SHAPES = {
  circle: "M8 2a6 6 0 1 0 .01 0z", square: "M3 3h10v10H3z", diamond: "M8 1l7 7-7 7-7-7z", "triangle-up": "M8 2l7 12H1z",
  cross: "M6 1h4v5h5v4h-5v5H6v-5H1V6h5z", x: "M4 1l4 4 4-4 3 3-4 4 4 4-3 3-4-4-4 4-3-3 4-4-4-4z",
  star: "M8 0l2.4 5.2 5.6.7-4.100 3.9 1.1 5.700L8 12.700l-5 2.800 1.100-5.700L0 5.900l5.600-.7z",
  hexagon: "M4.500 2h7L15 8l-3.500 6h-7L1 8z", "triangle-down": "M8 14L1 2h14z",
};
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const DASH_ARRAYS = { solid: "", dash: "6 3", dot: "1.5 3", dashdot: "6 3 1.5 3", longdash: "10 4", longdashdot: "10 4 2 4" };

const colourOf = (s) => COLOURS[s % COLOURS.length];
const symbolOf = (s) => SYMBOLS[s % SYMBOLS.length];
const dashOf = (b) => DASHES[b % DASHES.length];

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, content] of Object.entries(attributes)) element.setAttribute(name, content);
  element.append(...children);
  return element;
}

function icon(strategy, backend = null) {
  const mark = svg("path", { d: SHAPES[symbolOf(strategy)], fill: colourOf(strategy) });
  if (backend === null) return svg("svg", { viewBox: "0 0 16 16", width: 12, height: 12, "aria-hidden": "true" }, mark);
  const line = svg("path", { d: "M0 8h36", stroke: colourOf(strategy), "stroke-width": 2, "stroke-dasharray": DASH_ARRAYS[dashOf(backend)] });
  return svg("svg", { viewBox: "0 0 36 16", width: 30, height: 13, "aria-hidden": "true" }, line, svg("g", { transform: "translate(10 0)" }, mark));
}

function dashIcon(backend) {
  const line = svg("path", { d: "M0 6h24", stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": DASH_ARRAYS[dashOf(backend)] });
  return svg("svg", { viewBox: "0 0 24 12", width: 24, height: 12, "aria-hidden": "true" }, line);
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function layout(extra) {
  const axis = { gridcolor: css("--grid"), zeroline: false, linecolor: css("--line"), tickcolor: css("--line"), ticks: "outside", ticklen: 4, automargin: true };
  const narrow = innerWidth < 600;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: css("--font"), size: narrow ? 11 : 12.5, color: css("--soft") },
    margin: { l: narrow ? 44 : 64, r: narrow ? 8 : 20, t: 8, b: 44 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { family: css("--font"), size: 13, color: css("--ink") }, align: "left" },
    ...extra, xaxis: titled({ ...axis, ...extra.xaxis }), yaxis: titled({ ...axis, ...extra.yaxis }),
  };
}

const titled = (axis) => ({ ...axis, title: { standoff: 10, ...axis.title, font: { size: innerWidth < 600 ? 11.5 : 13 } } });
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

// Log axes label whole lengths and 1-2-5 steps: plotly's own minor labels read as "5" beside "100".
function lengthTicks(lengths) {
  const sorted = [...new Set(lengths)].sort((a, b) => a - b);
  const kept = [];
  const gap = (innerWidth < 600 ? 0.13 : 0.05) * Math.log(sorted.at(-1) / sorted[0] || 2);
  for (const n of sorted) if (!kept.length || Math.log(n / kept.at(-1)) >= gap) kept.push(n);
  return { tickvals: kept, ticktext: kept.map(thousands) };
}

function logTicks(values, write) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const decades = Math.log10(high / low);
  const steps = decades < 0.5 ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8] : decades < 1.3 ? [1, 2, 3, 5, 7] : decades < 3 ? [1, 2, 5] : [1];
  const skip = decades > 8 ? 2 : 1;
  const vals = [];
  for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)); e++) {
    if (e % skip === 0) for (const s of steps) vals.push(s * 10 ** e);
  }
  const kept = vals.filter((v) => v >= low / 3 && v <= high * 3);
  return { tickvals: kept, ticktext: kept.map(write) };
}

const round = (v) => Number(v.toPrecision(3));
const tickTime = (ms) => (ms < 1 ? `${round(ms * 1000)} µs` : ms < 1000 ? `${round(ms)} ms` : `${round(ms / 1000)} s`);
const tickMib = (m) => (m < 0.1 ? `${round(m * 1024)} KiB` : m < 1024 ? `${round(m)} MiB` : `${round(m / 1024)} GiB`);
const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const superscript = (n) => (n < 0 ? "⁻" : "") + [...String(Math.abs(n))].map((d) => SUPERSCRIPT[d]).join("");
function tickError(v) {
  const exponent = Math.floor(Math.log10(v) + 1e-9);
  const lead = round(v / 10 ** exponent);
  return (lead === 1 ? "" : `${lead}·`) + `10${superscript(exponent)}`;
}

function logRange(values, pad = 0.06) {
  const [low, high] = [Math.log10(Math.min(...values)), Math.log10(Math.max(...values))];
  const room = Math.max((high - low) * pad, 0.06);
  return [low - room, high + room];
}

function section(id, { summary, caption = "", empty = false }) {
  const card = $(`#${id}`);
  $(".summary", card).textContent = summary;
  if ($(".caption", card)) $(".caption", card).textContent = caption;
  const chart = $(".chart", card);
  if (chart) {
    chart.setAttribute("aria-label", `${$("h2", card).textContent}: ${summary}`);
    chart.hidden = empty;
    const legend = $(".legend", card);
    if (legend) legend.replaceChildren();
    if (empty && window.Plotly && chart.data) Plotly.purge(chart);
  }
  return chart;
}

function legend(id, entries) {
  const shown = entries.slice(0, 40);
  $(`#${id} .legend`).replaceChildren(
    ...shown.map(({ mark, name }) => node("span", { class: "key" }, mark, node("bdi", {}, cut(name, 60)))),
    ...(entries.length > 40 ? [node("span", { class: "key soft" }, `and ${entries.length - 40} more`)] : []),
  );
}

function hover(row) {
  const lines = [
    `<b>${plain(candidateName(row))}</b>`, plain(shapeName(row)),
    `${duration(number("median_ms", row))} [${duration(number("low_ms", row))} – ${duration(number("high_ms", row))}]`,
    `peak ${digits(number("peak_mib", row))} MiB · rel. error ${small(number("rel_l2", row))}`,
  ];
  return lines.join("<br>");
}

const seriesOf = (row, by) => ({ name: by === "strategy" ? value("strategy", row) : candidateName(row), strategy: code("strategy", row), backend: code("backend", row) });

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    const k = key(item);
    if (!groups.has(k)) groups.set(k, []);
    groups.get(k).push(item);
  }
  return groups;
}

// The shapes along one curve: the other length, or the ratio of both, stays as in the chosen shape.
function curve(cells, shape, axis) {
  if (axis !== "total") {
    const other = axis === "text" ? "image" : "text";
    return { cells: cells.filter((c) => c.ranked.length && c[other] === shape[other]), fixed: `${other} fixed at ${thousands(shape[other])} tokens` };
  }
  const ratioOf = (c) => Math.log(c.image / c.text);
  return { cells: cells.filter((c) => c.ranked.length && Math.abs(ratioOf(c) - ratioOf(shape)) < 0.01), fixed: `image : text fixed at ${round(shape.image / shape.text)} : 1` };
}

const AXES = { text: "text tokens", image: "image tokens", total: "image + text tokens" };

async function drawLatency(view) {
  $("#latency").hidden = !view.curves;
  if (!view.curves) return;
  const { axis, by } = view;
  const { cells, fixed } = curve(view.cells, view.shape, axis);
  if (cells.length < 2) {
    section("latency", { summary: `Only one length was timed with ${fixed}: choose another shape or length.`, empty: true });
    return;
  }
  const lengthOf = (row) => (axis === "total" ? value("image", row) + value("text", row) : value(axis, row));
  const rows = cells.flatMap((c) => c.ranked);
  const lengths = rows.map(lengthOf);
  const groups = [...groupBy(rows, (row) => candidate(row, by)).values()];
  const traces = groups.map((members) => {
    const { name, strategy, backend } = seriesOf(members[0], by);
    const points = [...members].sort((a, b) => lengthOf(a) - lengthOf(b));
    const ms = (what) => points.map((row) => number(what, row));
    return {
      type: "scatter", mode: "lines+markers", name: plain(name), x: points.map(lengthOf), y: ms("median_ms"),
      error_y: { type: "data", symmetric: false, array: points.map((r) => number("high_ms", r) - number("median_ms", r)),
        arrayminus: points.map((r) => number("median_ms", r) - number("low_ms", r)), thickness: 1, width: 3, color: colourOf(strategy) },
      line: { color: colourOf(strategy), width: 2, dash: by === "strategy" ? "solid" : dashOf(backend) },
      marker: { symbol: symbolOf(strategy), size: 8, color: colourOf(strategy) },
      text: points.map(hover), hovertemplate: "%{text}<extra></extra>",
    };
  });
  const ys = rows.flatMap((row) => [number("low_ms", row), number("high_ms", row)]); // the bars stay inside
  const [least, most] = [Math.min(...lengths), Math.max(...lengths)];
  const last = cells.find((c) => lengthOf(c.first) === most);
  const growth = slope(groups, lengthOf, last.ranked[0], by);
  const chart = section("latency", {
    summary: `From ${thousands(least)} to ${thousands(most)} ${AXES[axis]}, ${fixed}. At the longest: ${sentence(verdict(last))}`
      + (growth === null ? "" : ` The fastest’s time grows as length to the power ${growth.toFixed(2)} over the last step.`),
    caption: `Both axes are logarithmic; bars are 95 % intervals.${by === "strategy" ? " Each point is the strategy’s fastest backend at that length." : ""}`,
  });
  await Plotly.react(chart, traces, layout({
    xaxis: { type: "log", title: { text: AXES[axis] }, range: logRange(lengths, 0.04), ...lengthTicks(lengths) },
    yaxis: { type: "log", range: logRange(ys), ...logTicks(ys, tickTime) },
  }), CONFIG);
  legend("latency", groups.map((members) => {
    const s = seriesOf(members[0], by);
    return { mark: icon(s.strategy, by === "strategy" ? 0 : s.backend), name: s.name };
  }));
}

function slope(groups, lengthOf, row, by) {
  const members = groups.find((g) => candidate(g[0], by) === candidate(row, by));
  const sorted = [...members].sort((a, b) => lengthOf(a) - lengthOf(b)).slice(-2);
  if (sorted.length < 2 || lengthOf(sorted[0]) === lengthOf(sorted[1])) return null;
  return Math.log(number("median_ms", sorted[1]) / number("median_ms", sorted[0])) / Math.log(lengthOf(sorted[1]) / lengthOf(sorted[0]));
}

async function drawRanking(view) {
  const ranked = view.shape ? view.shape.ranked : [];
  if (!ranked.length) { section("ranking", { summary: "Nothing was timed at this shape under these filters.", empty: true }); return; }
  const shown = ranked.slice(0, 40).reverse();
  const tied = new Set(view.shape.ties);
  const chart = section("ranking", {
    summary: `${shapeName(ranked[0])}, ${conditionName(ranked[0])}. ${sentence(verdict(view.shape))}`,
    caption: "Dots are medians, bars 95 % intervals; hollow dots cannot be told from the fastest." + (ranked.length > 40 ? ` The 40 fastest of ${ranked.length}.` : ""),
  });
  chart.style.height = `${Math.max(150, 70 + shown.length * 27)}px`;
  const ms = (name) => shown.map((row) => number(name, row));
  const names = shown.map((row) => plain(cut(candidateName(row), innerWidth < 600 ? 22 : 46)));
  const many = ms("high_ms").concat(ms("low_ms"));
  const log = Math.max(...many) / Math.min(...many) > 8;
  const ratios = shown.map((row) => (row === ranked[0] ? "" : (tied.has(row) ? "≈ " : "") + times(ratio(ranked[0], row).value)));
  const range = log ? logRange(many, 0.05) : [0, Math.max(...many) * 1.05];
  range[1] += (range[1] - range[0]) * (innerWidth < 600 ? 0.34 : 0.1); // room for the ratios
  const unit = Math.max(...many) < 1 ? 1000 : 1;
  const scaled = (values) => values.map((v) => v * unit);
  const shift = log ? Math.log10(unit) : 0;
  await Plotly.react(chart, [{
    type: "scatter", mode: "markers", x: scaled(ms("median_ms")), y: shown.map((_, i) => i),
    error_x: { type: "data", symmetric: false, array: shown.map((r) => unit * (number("high_ms", r) - number("median_ms", r))), arrayminus: shown.map((r) => unit * (number("median_ms", r) - number("low_ms", r))), thickness: 2, width: 0, color: css("--soft") },
    marker: { size: 10, symbol: shown.map((row) => symbolOf(code("strategy", row)) + (tied.has(row) ? "-open" : "")), color: shown.map((row) => colourOf(code("strategy", row))), line: { width: 2, color: shown.map((row) => colourOf(code("strategy", row))) } },
    hovertext: shown.map(hover), hovertemplate: "%{hovertext}<extra></extra>",
  }, { // the ratios, beyond the end of each bar
    type: "scatter", mode: "text", x: scaled(ms("high_ms")), y: shown.map((_, i) => i), hoverinfo: "skip",
    text: ratios.map((r) => (r ? `   ${r}` : "")), textposition: "middle right", textfont: { color: css("--soft"), size: 12 }, cliponaxis: false,
  }], layout({
    xaxis: { type: log ? "log" : "linear", title: { text: `median latency, ${unit === 1000 ? "µs" : "ms"}${log ? ", logarithmic" : ""}` },
      range: log ? range.map((v) => v + shift) : range.map((v) => v * unit), ...(log ? logTicks(scaled(many), (v) => thousands(round(v))) : { nticks: 7 }) },
    yaxis: { tickvals: shown.map((_, i) => i), ticktext: names, range: [-0.7, shown.length - 0.3], showgrid: false, ticks: "", automargin: true },
  }), CONFIG);
}

function drawWinners(view, pick) {
  const images = [...new Set(view.cells.map((c) => c.image))].sort((a, b) => a - b);
  const texts = [...new Set(view.cells.map((c) => c.text))].sort((a, b) => a - b);
  const card = $("#winners");
  card.hidden = view.cells.length < 2;
  if (card.hidden) return;
  const at = new Map(view.cells.map((c) => [`${c.image},${c.text}`, c]));
  const timed = view.cells.filter((c) => c.ranked.length);
  const clear = timed.filter((c) => !c.ties.length && c.ranked.length > 1);
  const alone = timed.filter((c) => c.ranked.length === 1).length;
  const wins = [...groupBy(clear, (c) => candidate(c.ranked[0], view.by)).values()].sort((a, b) => b.length - a.length);
  const tally = wins.slice(0, 3).map((g) => `${seriesOf(g[0].ranked[0], view.by).name} ${g.length}`).join(", ");
  const summary = `${plural(timed.length, "shape")} timed. Clear winners: ${tally || "none"}${wins.length > 3 ? " …" : ""}. No clear winner at ${timed.length - clear.length - alone}${alone ? `; a single candidate at ${alone}` : ""}.`;
  section("winners", { summary, caption: "Cells name the fastest and how far the next one is behind it; “≈” where their intervals overlap. Select a cell to rank its candidates." });
  const head = node("tr", {}, node("th", { class: "corner", scope: "col" }, node("span", {}, "image ↓  text →")), ...texts.map((t) => node("th", { scope: "col" }, thousands(t))));
  const body = images.map((image) => node("tr", {}, node("th", { scope: "row" }, thousands(image)), ...texts.map((text) => winnerCell(at.get(`${image},${text}`), view, pick))));
  $(".grid-wrap", card).replaceChildren(node("table", { class: "grid" }, node("thead", {}, head), node("tbody", {}, ...body)));
}

function winnerCell(cell, view, pick) {
  if (!cell) return node("td", {}, node("span", { class: "cell none" }, "not run"));
  if (!cell.ranked.length) return node("td", {}, node("span", { class: "cell none" }, cell.failed ? "failed" : "skipped"));
  const [winner, second] = cell.ranked;
  const name = seriesOf(winner, view.by).name;
  const margin = second === undefined ? "alone" : cell.ties.length ? `≈ ${plural(cell.ties.length, "tie")}` : times(ratio(winner, second).value);
  const chosen = view.shape && view.shape.key === cell.key;
  const button = node("button", { type: "button", class: `cell${cell.ties.length ? " tie" : ""}`, "aria-pressed": String(chosen), title: sentence(verdict(cell)), onclick: () => pick(cell) },
    node("span", { class: "who" }, icon(code("strategy", winner)), breakable(name)), node("span", { class: "margin" }, margin));
  button.style.setProperty("--tint", colourOf(code("strategy", winner)));
  return node("td", {}, button);
}

async function drawMemory(view) {
  const rows = view.shape ? view.shape.ranked.filter((row) => number("peak_mib", row) >= 0) : [];
  if (!rows.length) { section("memory", { summary: "No memory was measured at this shape under these filters.", empty: true }); return; }
  const floor = Math.min(...rows.map((r) => number("peak_mib", r)).filter((v) => v > 0), 1) / 2;
  const mib = (row) => Math.max(number("peak_mib", row), floor);
  const front = [];
  for (const row of rows) if (!front.length || mib(row) < mib(front.at(-1))) front.push(row);
  const leanest = [...rows].sort((a, b) => mib(a) - mib(b))[0];
  const summary = `${shapeName(rows[0])}, ${conditionName(rows[0])}. ` + (front.length === 1 ? `${candidateName(rows[0])} is both the fastest and the leanest (${digits(mib(rows[0]))} MiB).`
    : `${candidateName(rows[0])} is ${view.shape.ties.length ? "among the fastest" : "fastest"} with ${digits(mib(rows[0]))} MiB, ${candidateName(leanest)} leanest with ${digits(mib(leanest))} MiB.`);
  const chart = section("memory", { summary, caption: "Lower left is better. The line joins the candidates that no other beats in both; the rest are faint. Memory is the peak above inputs and weights." });
  const best = new Set(front);
  const groups = [...groupBy(rows, (row) => code("strategy", row))];
  const line = { type: "scatter", mode: "lines", x: front.map((r) => number("median_ms", r)), y: front.map(mib), line: { color: css("--soft"), width: 1, dash: "dot" }, hoverinfo: "skip" };
  const traces = groups.map(([s, members]) => ({
    type: "scatter", mode: "markers", name: plain(value("strategy", members[0])), x: members.map((r) => number("median_ms", r)), y: members.map(mib),
    marker: { size: 12, symbol: symbolOf(s), color: colourOf(s), opacity: members.map((r) => (best.has(r) ? 1 : 0.45)) },
    text: members.map(hover), hovertemplate: "%{text}<extra></extra>",
  }));
  const xs = rows.map((r) => number("median_ms", r)), ys = rows.map(mib);
  await Plotly.react(chart, [line, ...traces], layout({
    xaxis: { type: "log", title: { text: "median latency" }, range: logRange(xs), ...logTicks(xs, tickTime) },
    yaxis: { type: "log", range: logRange(ys), ...logTicks(ys, tickMib) },
  }), CONFIG);
  legend("memory", groups.map(([s, members]) => ({ mark: icon(s), name: value("strategy", members[0]) })));
}

async function drawError(view) {
  const worst = new Map(); // dtype → candidate → its worst row
  for (const row of view.rows) {
    if (!(number("rel_l2", row) >= 0)) continue;
    const dtype = value("dtype", row), who = candidate(row, view.by);
    if (!worst.has(dtype)) worst.set(dtype, new Map());
    const held = worst.get(dtype).get(who);
    if (held === undefined || number("rel_l2", row) > number("rel_l2", held)) worst.get(dtype).set(who, row);
  }
  const dtypes = DTYPES.filter((d) => worst.has(d)).concat([...worst.keys()].filter((d) => !DTYPES.includes(d)));
  if (!dtypes.length) { section("error", { summary: "No error was measured under these filters.", empty: true }); return; }
  const order = [...new Set(dtypes.flatMap((d) => [...worst.get(d).keys()]))].sort((a, b) => a - b);
  const step = Math.min(0.12, 0.72 / Math.max(1, order.length - 1));
  const place = (d, who) => {
    const here = order.filter((other) => worst.get(d).has(other));
    return dtypes.indexOf(d) + (here.indexOf(who) - (here.length - 1) / 2) * step;
  };
  const points = dtypes.flatMap((d) => [...worst.get(d)].map(([who, row]) => ({ x: place(d, who), row, error: number("rel_l2", row), yard: number("yardstick_rel_l2", row) })));
  const positive = points.flatMap((p) => [p.error, p.yard]).filter((v) => v > 0);
  const floor = (positive.length ? Math.min(...positive) : 1e-8) / 4;
  const exact = points.filter((p) => p.error === 0).length;
  const summary = dtypes.map((d) => {
    const errors = [...worst.get(d).values()].map((r) => number("rel_l2", r));
    const [low, high] = [small(Math.min(...errors)), small(Math.max(...errors))];
    return low === high ? `${d}: ${low}` : `${d}: ${low} to ${high}`;
  }).join("; ") + " (worst relative L2 error of each candidate over the shapes shown).";
  const chart = section("error", { summary, caption: "Against a reference in higher precision. The short grey line is the yardstick: eager PyTorch on the same job."
    + (exact ? ` ${plural(exact, "exact result")} (error 0) drawn at the lower edge.` : "") });
  const at = (v) => Math.max(v, floor);
  const dense = order.length * dtypes.length * (innerWidth < 600 ? 3 : 1) > 96;
  const ys = points.flatMap((p) => [at(p.error), p.yard >= 0 ? at(p.yard) : at(p.error)]);
  const yardstick = { type: "scatter", mode: "markers", name: "eager PyTorch", x: points.map((p) => p.x), y: points.map((p) => (p.yard >= 0 ? at(p.yard) : null)),
    marker: { symbol: "line-ew-open", size: dense ? 6 : 11, color: css("--soft"), line: { width: 2, color: css("--soft") } }, hoverinfo: "skip" };
  const groups = [...groupBy(points, (p) => code("strategy", p.row))];
  const traces = groups.map(([s, members]) => ({
    type: "scatter", mode: "markers", name: plain(value("strategy", members[0].row)), x: members.map((p) => p.x), y: members.map((p) => at(p.error)),
    marker: { symbol: symbolOf(s), size: dense ? 6 : 10, color: colourOf(s) },
    text: members.map((p) => `<b>${plain(candidateName(p.row))}</b>, ${plain(value("dtype", p.row))}<br>${plain(shapeName(p.row))}<br>error ${small(p.error)}, eager PyTorch ${small(p.yard)}`), hovertemplate: "%{text}<extra></extra>",
  }));
  await Plotly.react(chart, [yardstick, ...traces], layout({
    xaxis: { tickvals: dtypes.map((_, i) => i), ticktext: dtypes.map(plain), range: [-0.5, dtypes.length - 0.5], showgrid: false, ticks: "" },
    yaxis: { type: "log", title: { text: innerWidth < 600 ? "" : "relative L2 error" }, range: logRange(ys), ...logTicks(ys, tickError) },
  }), CONFIG);
  legend("error", [...groups.map(([s, members]) => ({ mark: icon(s), name: value("strategy", members[0].row) })), { mark: node("span", { class: "yard" }), name: "eager PyTorch (yardstick)" }]);
}
