// Pareto: which candidates at one shape no other beats in two of latency, memory and error at once.

VIEWS.pareto = drawPareto;

const MEASURES = {
  latency: { column: "median_ms", title: "median latency", tick: tickTime, show: (v) => duration(v) },
  memory: { column: "peak_mib", title: "peak memory", tick: tickMib, show: tickMib },
  error: { column: "rel_l2", title: "relative L2 error", tick: tickError, show: small },
};

async function drawPareto(view) {
  const names = (view.choices.front || "latency-memory").split("-");
  $("#front").value = names.join("-");
  const all = view.shape ? Array.from(view.rows.filter((row) => code("cell", row) === view.shape.key && isOk(row))) : [];
  const rows = all.filter((row) => names.every((name) => measured(name, row)));
  if (!rows.length) {
    const missing = names.find((name) => !all.some((row) => measured(name, row)));
    section("pareto", { summary: all.length && missing ? `No ${missing} was measured at this shape under these filters.` : "Nothing was timed at this shape under these filters.", empty: true });
    return;
  }
  const standing = new Map(rows.map((row) => [row, standingOf(row, rows, names)]));
  const axes = names.map((name, i) => paretoAxis(name, rows, i ? logTicks : logTicksAcross));
  const front = rows.filter((row) => standing.get(row) === "front").sort((a, b) => axes[0].at(a) - axes[0].at(b) || axes[1].at(b) - axes[1].at(a));
  const chart = section("pareto", { summary: paretoSummary(view, rows, all, front, names), caption: paretoCaption(names, rows) });
  const stairs = { type: "scatter", mode: "lines", name: "stairs", x: front.map(axes[0].at), y: front.map(axes[1].at), line: { color: css("--soft"), width: 1.5, dash: "dot", shape: "hv" }, hoverinfo: "skip" };
  const kinds = ["dominated", "near", "front"].map((kind) => paretoTrace(kind, rows.filter((row) => standing.get(row) === kind), axes));
  await Plotly.react(chart, [stairs, ...kinds], layout({ xaxis: { ...axes[0].layout, range: widened(axes[0].layout.range) }, yaxis: axes[1].layout }), CONFIG);
  legend("pareto", paretoEntries(rows, front, standing, names));
}

const measured = (name, row) => number(MEASURES[name].column, row) >= 0;

// Better or equal in every one, and better in one.
const beats = (a, b, names) => names.every((name) => number(MEASURES[name].column, a) <= number(MEASURES[name].column, b))
  && names.some((name) => number(MEASURES[name].column, a) < number(MEASURES[name].column, b));
const surely = (a, b, names) => names.some((name) => (name === "latency" ? number("high_ms", a) < number("low_ms", b) : number(MEASURES[name].column, a) < number(MEASURES[name].column, b)));

// "near": only times whose intervals overlap keep it off the front.
function standingOf(row, rows, names) {
  const better = rows.filter((other) => beats(other, row, names));
  if (!better.length) return "front";
  return better.some((other) => surely(other, row, names)) ? "dominated" : "near";
}

// A logarithmic axis has no 0: it is drawn below the least value.
function paretoAxis(name, rows, ticks) {
  const { column, title, tick } = MEASURES[name];
  const floor = rows.map((row) => number(column, row)).filter((v) => v > 0).reduce((a, b) => Math.min(a, b), 1) / 2;
  const at = (row) => Math.max(number(column, row), floor);
  const values = rows.map(at);
  return { at, layout: { type: "log", title: { text: title }, range: logRange(values, 0.1), ...ticks(values, tick) } };
}

const ROOM = () => (innerWidth < 600 ? 1.4 : 1.2); // of the whole width, for names beyond the last point
const widened = ([low, high]) => [low, low + (high - low) * ROOM()];

// A name beside each member of the front, off the stairs and where it covers no other name; below the chart all are named.
function placed(rows, axes) {
  const box = $("#pareto .chart"), taken = [], narrow = innerWidth < 600;
  const [x, y] = axes.map(({ at, layout: { range } }, i) => (row) => ((Math.log10(at(row)) - range[0]) / (range[1] - range[0])) * (i ? box.clientHeight - 60 : (box.clientWidth - 110) / ROOM()));
  return rows.map((row) => {
    const name = cut(candidateName(row), narrow ? 18 : 34), left = x(row) + 8, wide = name.length * 6.8;
    for (const [place, up] of [["top right", 12], ["bottom right", -12], ["middle right", 0]]) {
      const middle = y(row) + up;
      if (taken.some((t) => left < t.left + t.wide && t.left < left + wide && Math.abs(t.middle - middle) < 15)) continue;
      taken.push({ left, wide, middle });
      return { text: `\u2002${plain(name)}`, place };
    }
    return { text: "", place: "middle right" };
  });
}

function paretoTrace(kind, rows, axes) {
  const look = { front: { size: 13, opacity: 1, open: "" }, near: { size: 11, opacity: 1, open: "-open" }, dominated: { size: 9, opacity: 0.35, open: "" } }[kind];
  const labels = kind === "front" ? placed(rows, axes) : rows.map(() => ({ text: "", place: "middle right" }));
  return {
    type: "scatter", mode: "markers+text", name: kind, x: rows.map(axes[0].at), y: rows.map(axes[1].at), text: labels.map((l) => l.text), textposition: labels.map((l) => l.place), textfont: { color: css("--ink"), size: 12 },
    marker: { size: look.size, opacity: look.opacity, symbol: rows.map((row) => symbolOf(code("strategy", row)) + look.open), color: rows.map((row) => colourOf(code("strategy", row))),
      line: { width: look.open ? 2 : 0, color: rows.map((row) => colourOf(code("strategy", row))) } },
    hovertext: rows.map((row) => `${hover(row)}<br>${{ front: "on the front", near: "≈ on the front: the times’ intervals overlap", dominated: "dominated" }[kind]}`), hovertemplate: "%{hovertext}<extra></extra>",
  };
}

const valuesOf = (row, names) => names.map((name) => MEASURES[name].show(number(MEASURES[name].column, row))).join(", ");

function paretoSummary(view, rows, all, front, names) {
  const [x, y] = names;
  const where = `${shapeName(rows[0])}, ${conditionName(rows[0])}. `;
  const told = front.slice(0, 3).map((row) => `${candidateName(row)} (${valuesOf(row, names)})`).join(", ");
  const rest = front.length > 3 ? ` and ${front.length - 3} more` : "";
  const one = `${candidateName(front[0])} is best in both ${x} and ${y} (${valuesOf(front[0], names)}).`;
  const every = Object.keys(MEASURES), whole = all.filter((row) => every.every((name) => measured(name, row)));
  const three = whole.length === all.length ? ` Counting ${every.join(", ")} together, ${whole.filter((row) => !whole.some((other) => beats(other, row, every))).length} are beaten by none.` : "";
  return where + (front.length === 1 ? one : `No other beats these in both ${x} and ${y}: ${told}${rest}; of ${plural(rows.length, "candidate")} in all.`) + three;
}

function paretoCaption(names, rows) {
  const exact = names.includes("error") && rows.some((row) => number("rel_l2", row) === 0) ? " An error of 0 is drawn at the edge." : "";
  const memory = names.includes("memory") ? " Memory is the peak above inputs and weights." : "";
  const near = names.includes("latency") ? " Hollow ones are off it by less than the intervals of their times." : "";
  return `Lower left is better. The dotted line joins the front; what another beats in both is faint.${near} Every strategy and backend is a point.${memory}${exact}`;
}

function paretoEntries(rows, front, standing, names) {
  const near = rows.filter((row) => standing.get(row) === "near");
  const beaten = [...groupBy(rows.filter((row) => standing.get(row) === "dominated"), (row) => code("strategy", row))];
  const entry = (row, note) => ({ mark: icon(code("strategy", row)), name: candidateName(row), note });
  return [
    ...front.map((row) => entry(row, valuesOf(row, names))), ...near.map((row) => entry(row, `≈ ${valuesOf(row, names)}`)),
    ...beaten.map(([s, members]) => ({ mark: icon(s), name: value("strategy", members[0]), note: `${members.length} dominated` })),
  ];
}
