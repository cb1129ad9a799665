// Latency: one curve per candidate along an axis, with the power by which it grows where the curve is straight.

VIEWS.latency = drawLatency;

const MOST_BANDS = 12; // of more curves the bands would hide each other

async function drawLatency(view) {
  const reached = reach(view, Object.keys(AXES));
  $("#latency").hidden = reached[0][1] < 2;
  if ($("#latency").hidden) return;
  const axis = axisOf(reached, "#axis", view.choices.x);
  const { cells, fixed } = curve(view, axis);
  if (cells.length < 2) {
    section("latency", { summary: `Only one ${AXES[axis].sizes ? axis : "length"} was timed with ${fixed}: choose another shape or axis.`, empty: true });
    return;
  }
  const rows = cells.flatMap((c) => c.ranked);
  const lengths = rows.map((row) => lengthOf(axis, row));
  const curves = [...groupBy(rows, (row) => candidate(row, view.by)).values()].map((points) => latencyCurve(points, axis, view.by));
  const ys = rows.flatMap((row) => [number("low_ms", row), number("high_ms", row)]); // the bars stay inside
  const chart = section("latency", { summary: latencySummary(cells, fixed, axis, curves, view.by), caption: latencyCaption(curves, view.by) });
  const bands = curves.length > MOST_BANDS ? [] : curves.filter((c) => c.fit && !c.fit.crooked).map((c) => band(c.fit, colourOf(c.strategy)));
  await Plotly.react(chart, [...bands, ...curves.map((c) => c.trace)], layout({
    xaxis: { type: "log", title: { text: AXES[axis].title }, range: logRange(lengths, 0.04), ...lengthTicks(lengths) },
    yaxis: { type: "log", range: logRange(ys), ...logTicks(ys, tickTime) },
  }), CONFIG);
  legend("latency", curves.map((c) => ({ mark: icon(c.strategy, view.by === "strategy" ? 0 : c.backend), name: c.name, note: growth(c.fit) })));
}

function latencyCurve(points, axis, by) {
  const { name, strategy, backend } = seriesOf(points[0], by);
  const x = points.map((row) => lengthOf(axis, row));
  const beyond = (a, b) => points.map((row) => number(a, row) - number(b, row));
  const trace = {
    type: "scatter", mode: "lines+markers", name: plain(name), x, y: points.map((row) => number("median_ms", row)),
    error_y: { type: "data", symmetric: false, array: beyond("high_ms", "median_ms"), arrayminus: beyond("median_ms", "low_ms"), thickness: 1, width: 3, color: colourOf(strategy) },
    line: { color: colourOf(strategy), width: 2, dash: by === "strategy" ? "solid" : dashOf(backend) },
    marker: { symbol: symbolOf(strategy), size: 8, color: colourOf(strategy) },
    text: points.map(hover), hovertemplate: "%{text}<extra></extra>",
  };
  return { name, strategy, backend, who: candidate(points[0], by), fit: tail(points.map((row, i) => logPoint(x[i], row))), trace };
}

function growth(fit) {
  if (!fit) return "";
  return fit.crooked ? `not straight; n^${hundredths(fit.power)} over the last step` : `∝\u00a0n^${hundredths(fit.power)} ${powerInterval(fit)} from ${thousands(lengthsOf(fit)[0])}`;
}

function latencySummary(cells, fixed, axis, curves, by) {
  const [first, last] = [cells[0], cells.at(-1)].map((c) => thousands(lengthOf(axis, c.first)));
  const { fit } = curves.find((c) => c.who === candidate(cells.at(-1).ranked[0], by));
  const told = !fit ? "" : fit.crooked ? ` The fastest’s curve is not straight: over the last step its time grows to the power ${hundredths(fit.power)}.`
    : ` The fastest’s time grows as the ${AXES[axis].sizes ? axis : "length"} to the power ${hundredths(fit.power)} ${powerInterval(fit)}, fitted on ${lengthsOf(fit).map(thousands).join(", ")}.`;
  return `${AXES[axis].span(first, last)}, ${fixed}. At ${last}: ${sentence(verdict(cells.at(-1)))}${told}`;
}

function latencyCaption(curves, by) {
  const best = by === "strategy" ? " Each point is the strategy’s fastest backend there." : "";
  const fitted = curves.some((c) => c.fit) ? " “∝\u00a0n^p” is the power fitted to the straight end of a curve, from the point named on (least squares of the logarithms), with its 95 % interval"
    + (curves.length > MOST_BANDS ? "." : "; the shaded band is that of the line.")
    + " “not straight”: the last points are not within 5 % of a line, or leave the power open by more than 0.25." : "";
  return `Both axes are logarithmic; bars are 95 % intervals.${best}${fitted}`;
}
