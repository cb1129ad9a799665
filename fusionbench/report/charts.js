// Charts: what the views draw with: colours and symbols, axes, summaries, captions and legends.
// A chart has at most one point per candidate and length (or dtype): hundreds, where SVG is good for 10,000.

// A view is a file that adds a function here under the name of its section: it draws that section, its summary, its
// legend and its caption, or says there why it is empty. They are drawn in the order in which page.py names them.
const VIEWS = {};

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

// Labels beside each other need more room than those above each other.
function logTicksAcross(values, write) {
  const { tickvals, ticktext } = logTicks(values, write);
  if (innerWidth >= 600) return { tickvals, ticktext };
  const gap = 0.3 * Math.log(Math.max(...values) / Math.min(...values) || 2), kept = [];
  for (const i of tickvals.keys()) if (!kept.length || Math.log(tickvals[i] / tickvals[kept.at(-1)]) >= gap) kept.push(i);
  return { tickvals: kept.map((i) => tickvals[i]), ticktext: kept.map((i) => ticktext[i]) };
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

// Entries with a note say more than a key: the first dozen are shown, the rest unfold.
function legend(id, entries) {
  const box = $(`#${id} .legend`), noted = entries.some(({ note }) => note), most = noted ? 12 : 40;
  const key = ({ mark, name, note }) => node("span", { class: "key" }, mark, node("span", {}, node("bdi", {}, cut(name, 60)), note ? node("span", { class: "soft" }, ` ${note}`) : null));
  const [shown, more] = [entries.slice(0, most), entries.slice(most, 200)];
  box.classList.toggle("noted", noted);
  box.replaceChildren(...shown.map(key), ...(more.length ? [node("details", {}, node("summary", {}, `and ${entries.length - most} more`), node("div", { class: `legend${noted ? " noted" : ""}` }, ...more.map(key)))] : []));
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
