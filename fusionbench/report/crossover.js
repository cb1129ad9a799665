// Crossover: the fastest of concatenation, cross-attention and late fusion against length, and where they change places.

VIEWS.crossover = drawCrossover;

// A family are the variants of one strategy ("late:vote"), as they come: of presets, or with adapters, they differ in more.
const FAMILIES = { concat: "concat_attention", cross: "cross_attention", late: "late" };
const familyOf = (row) => {
  const name = value("strategy", row);
  return name === value("name", row) ? Object.keys(FAMILIES).find((family) => FAMILIES[family] === name.split(":")[0]) : undefined;
};

async function drawCrossover(view) {
  const reached = reach(view, LENGTHS);
  $("#crossover").hidden = reached[0][1] < 2 || Object.values(FAMILIES).filter((known) => D.columns.name.values.some((name) => name.split(":")[0] === known)).length < 2;
  if ($("#crossover").hidden) return;
  const chosen = view.choices.cross || (LENGTHS.includes(view.choices.x) ? view.choices.x : null);
  const axis = axisOf(reached, "#cross", chosen);
  const { cells, fixed } = curve(view, axis);
  const families = familyCurves(cells, axis);
  const where = `${conditionName(view.shape.first)}, ${fixed}`;
  const why = families.length < 2 ? `This needs two of ${Object.values(FAMILIES).join(", ")}; timed: ${families.map((f) => f.name).join(", ") || "none of them"} (${where}).`
    : cells.length < 2 ? `Only one length was timed with ${fixed}: choose another shape or length.` : "";
  if (why) { section("crossover", { summary: why, empty: true }); return; }
  const pairs = families.flatMap((a, i) => families.slice(i + 1).map((b) => ({ a, b, ...meetings(a, b) })));
  const chart = section("crossover", { summary: `${where}. ${pairs.map((pair) => pairSentence(pair, axis)).join(" ")}`, caption: crossoverCaption(families) });
  const marks = pairs.flatMap((pair) => pair.crossings);
  const rows = families.flatMap((f) => f.rows), lengths = rows.map((row) => lengthOf(axis, row)), ys = rows.flatMap((row) => [number("low_ms", row), number("high_ms", row)]);
  const yRange = logRange(ys, 0.1);
  await Plotly.react(chart, [...families.map((f) => familyTrace(f, axis)), ...marks.map((mark) => spanTrace(mark, yRange)), crossingTrace(marks)], layout({
    xaxis: { type: "log", title: { text: AXES[axis].title }, range: logRange(lengths, 0.04), ...lengthTicks(lengths) },
    yaxis: { type: "log", range: yRange, ...logTicks(ys, tickTime) },
  }), CONFIG);
  legend("crossover", [...families.map((f) => ({ mark: icon(f.mark, 0), name: f.name, note: f.rows.some((row) => value("strategy", row) !== f.name) || f.backends.length > 1 ? `by ${f.members.join(", ")}` : `· ${f.backends[0]}` })),
    ...(marks.length ? [{ mark: node("span", { class: "crossing" }), name: "change places" }] : [])]);
}

// Of each family the fastest row at each length, shortest first.
function familyCurves(cells, axis) {
  return Object.keys(FAMILIES).map((family) => {
    const rows = cells.map((c) => c.ranked.find((row) => familyOf(row) === family)).filter((row) => row !== undefined);
    const names = [...new Set(rows.map((row) => value("strategy", row)))];
    return { rows, name: names.length === 1 ? names[0] : family, mark: rows.length ? code("strategy", rows[0]) : 0, backends: [...new Set(rows.map((row) => value("backend", row)))],
      members: [...new Set(rows.map(candidateName))], at: new Map(rows.map((row) => [lengthOf(axis, row), row])) };
  }).filter((f) => f.rows.length);
}

// Where the ratio a / b passes 1 between two lengths at which it is sure, straight where the logarithms are axes;
// the span is where the widest ratio that the intervals allow holds 1.
function meetings(a, b) {
  const points = [...a.at.keys()].filter((x) => b.at.has(x)).sort((x, y) => x - y).map((x) => {
    const [p, q] = [a.at.get(x), b.at.get(x)];
    return { length: x, x: Math.log(x), y: Math.log(number("median_ms", p)), log: Math.log(number("median_ms", p) / number("median_ms", q)),
      low: Math.log(number("low_ms", p) / number("high_ms", q)), high: Math.log(number("high_ms", p) / number("low_ms", q)) };
  });
  const sure = points.filter((p) => p.high < 0 || p.low > 0);
  const crossings = [];
  for (let i = 1; i < sure.length; i++) {
    const [before, after] = [sure[i - 1], sure[i]], rising = before.high < 0;
    if (rising === after.high < 0) continue;
    const between = points.slice(points.indexOf(before), points.indexOf(after) + 1);
    const span = ["low", "high"].map((edge) => Math.exp(zero(between, edge).x)).sort((x, y) => x - y);
    const { x, y } = zero(between, "log");
    crossings.push({ x: Math.exp(x), y: Math.exp(y), span, first: rising ? a : b, then: rising ? b : a });
  }
  return { points, sure, crossings };
}

function zero(points, what) {
  const i = points.findIndex((p, k) => k > 0 && (points[k - 1][what] < 0) !== (p[what] < 0));
  const [p, q] = [points[i - 1], points[i]], part = p[what] / (p[what] - q[what]);
  return { x: p.x + part * (q.x - p.x), y: p.y + part * (q.y - p.y) };
}

const UNITS = { text: "text tokens", image: "image tokens", total: "tokens in all" };
const whole = (v) => thousands(v < 10 ? round(v) : Math.round(v < 1000 ? v : Number(v.toPrecision(3))));

function pairSentence({ a, b, points, sure, crossings }, axis) {
  const ends = points.length ? `${thousands(points[0].length)} to ${thousands(points.at(-1).length)} ${UNITS[axis]}` : "";
  if (!points.length) return `${a.name} and ${b.name} share no length.`;
  if (!sure.length) return `${a.name} and ${b.name} cannot be told apart from ${ends}.`;
  const tied = points.length - sure.length;
  if (!crossings.length) {
    const [fast, slow] = sure[0].high < 0 ? [a, b] : [b, a];
    return `${fast.name} is faster than ${slow.name} ${tied ? `wherever they can be told apart, at ${sure.length} of ${points.length} lengths` : "at every length tried"} from ${ends}.`;
  }
  const [first, ...rest] = crossings;
  const at = (c) => `${whole(c.x)} ${UNITS[axis]} [${whole(c.span[0])}, ${whole(c.span[1])}]`;
  return `${first.first.name} is faster than ${first.then.name} below ${at(first)}, slower above${rest.map((c) => `; ${c.then === first.first ? "faster" : "slower"} again above ${at(c)}`).join("")}.`;
}

function familyTrace(f, axis) {
  return {
    type: "scatter", mode: "lines+markers", name: plain(f.name), x: f.rows.map((row) => lengthOf(axis, row)), y: f.rows.map((row) => number("median_ms", row)),
    error_y: { type: "data", symmetric: false, array: f.rows.map((row) => number("high_ms", row) - number("median_ms", row)), arrayminus: f.rows.map((row) => number("median_ms", row) - number("low_ms", row)), thickness: 1, width: 3, color: colourOf(f.mark) },
    line: { color: colourOf(f.mark), width: 2 }, marker: { size: 9, symbol: f.rows.map((row) => symbolOf(code("strategy", row))), color: colourOf(f.mark) },
    text: f.rows.map(hover), hovertemplate: "%{text}<extra></extra>",
  };
}

const crossingTrace = (marks) => ({
  type: "scatter", mode: "markers+text", name: "crossings", x: marks.map((m) => m.x), y: marks.map((m) => m.y), text: marks.map((m) => `${whole(m.x)}  `), textposition: "top left", textfont: { size: 12.5, color: css("--ink") },
  marker: { symbol: "circle-open", size: 16, color: css("--ink"), line: { width: 2 } },
  hovertext: marks.map((m) => plain(`${m.first.name} below, ${m.then.name} above`)), hovertemplate: "%{hovertext}<extra></extra>",
});

function spanTrace({ span: [left, right] }, [bottom, top]) {
  return { type: "scatter", mode: "lines", name: "span", x: [left, right, right, left], y: [bottom, bottom, top, top].map((v) => 10 ** v), fill: "toself", fillcolor: `${COLOURS[5]}22`, line: { width: 0 }, hoverinfo: "skip" };
}

function crossoverCaption(families) {
  const missing = Object.keys(FAMILIES).filter((family) => !families.some((f) => f.rows.some((row) => familyOf(row) === family)));
  return "Each point is the family’s fastest variant and backend at that length. Rings mark where two change places, interpolated on logarithmic axes between lengths at which one of them is surely faster; in brackets and shaded, where their intervals leave it open."
    + (missing.length ? ` Not timed here: ${missing.map((family) => FAMILIES[family]).join(", ")}.` : "");
}
