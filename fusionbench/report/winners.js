// Winners: a map of the fastest candidate over image × text tokens, with its margin; ties are hatched, failures grey.

VIEWS.winners = drawWinners;

const MAP_STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -Infinity], End: [0, Infinity] };

function drawWinners(view) {
  const card = $("#winners");
  card.hidden = view.cells.length < 2;
  if (card.hidden) return;
  const images = [...new Set(view.cells.map((c) => c.image))].sort((a, b) => a - b);
  const texts = [...new Set(view.cells.map((c) => c.text))].sort((a, b) => a - b);
  const at = new Map(view.cells.map((c) => [`${c.image},${c.text}`, c]));
  const causes = causesOf(view);
  section("winners", { summary: winnersSummary(view), caption: "Cells name the fastest and how many times as long the next one takes. Select a cell, or move with the arrow keys, to rank its candidates." });
  const head = node("tr", {}, node("th", { class: "corner", scope: "col" }, node("span", {}, "image ↓  text →")), ...texts.map((t) => node("th", { scope: "col" }, thousands(t))));
  const body = images.map((image) => node("tr", {}, node("th", { scope: "row" }, thousands(image)), ...texts.map((text) => node("td", {}, winnerCell(at.get(`${image},${text}`), view, causes)))));
  const box = $(".grid-wrap", card), held = box.contains(document.activeElement) && document.activeElement.closest(".cell");
  box.replaceChildren(node("table", { class: "grid" }, node("thead", {}, head), node("tbody", {}, ...body)));
  box.onkeydown = moveCell;
  const entry = $('.cell[aria-pressed="true"]', box) || $("button.cell", box);
  if (entry) entry.tabIndex = 0;
  if (held && entry) entry.focus({ preventScroll: true });
  legend("winners", winnerEntries(view));
}

function winnersSummary(view) {
  const timed = view.cells.filter((c) => c.ranked.length), lost = view.cells.filter((c) => !c.ranked.length && c.failed).length;
  const clear = timed.filter((c) => !c.ties.length && c.ranked.length > 1);
  const alone = timed.filter((c) => c.ranked.length === 1).length;
  const wins = [...groupBy(clear, (c) => candidate(c.ranked[0], view.by)).values()].sort((a, b) => b.length - a.length);
  const tally = wins.slice(0, 3).map((g) => `${seriesOf(g[0].ranked[0], view.by).name} ${g.length}`).join(", ");
  return `${conditionName(view.shape.first)}. ${plural(timed.length, "shape")} timed. Clear winners: ${tally || "none"}${wins.length > 3 ? " …" : ""}. No clear winner at ${timed.length - clear.length - alone}`
    + `${alone ? `; a single candidate at ${alone}` : ""}${lost ? `; all failed at ${lost}` : ""}.`;
}

// Of cells where nothing was timed: how many jobs ended in which status.
function causesOf(view) {
  const causes = new Map(view.cells.filter((c) => !c.ranked.length).map((c) => [c.key, new Map()]));
  if (!causes.size) return causes;
  for (const row of view.rows) {
    const counts = causes.get(code("cell", row)), status = counts && value("status", row);
    if (counts) counts.set(status, (counts.get(status) || 0) + 1);
  }
  return causes;
}

function winnerCell(cell, view, causes) {
  if (!cell) return node("span", { class: "cell none", tabindex: -1 }, "not run");
  const [winner, second] = cell.ranked;
  const chosen = view.shape.key === cell.key;
  const attributes = { type: "button", tabindex: -1, "aria-pressed": String(chosen), title: `${sentence(verdict(cell))}${cell.failed && winner !== undefined ? ` ${cell.failed} failed.` : ""}`, onclick: () => view.pick(cell) };
  if (winner === undefined) {
    const why = [...causes.get(cell.key)].map(([status, count]) => `${status} ${count}`).join(", ");
    return node("button", { ...attributes, class: "cell none" }, node("span", {}, cell.failed ? "failed" : "skipped"), node("span", { class: "why" }, why));
  }
  const margin = second === undefined ? "alone" : cell.ties.length ? `≈ ${plural(cell.ties.length, "tie")}` : times(ratio(winner, second).value);
  const button = node("button", { ...attributes, class: `cell${cell.ties.length ? " tie" : ""}` },
    node("span", { class: "who" }, icon(code("strategy", winner)), breakable(seriesOf(winner, view.by).name)), node("span", { class: "margin" }, margin));
  button.style.setProperty("--tint", colourOf(code("strategy", winner)));
  return button;
}

// One stop for the tabulator; the arrow keys go on to the next cell.
function moveCell(event) {
  const from = event.target.closest(".cell"), step = MAP_STEPS[event.key];
  if (!from || !step) return;
  event.preventDefault();
  const rows = [...event.currentTarget.querySelectorAll("tbody tr")].map((tr) => [...tr.querySelectorAll(".cell")]);
  const row = rows.findIndex((cells) => cells.includes(from));
  const within = (i, count) => Math.min(count - 1, Math.max(0, i));
  const cells = rows[within(row + step[0], rows.length)];
  const to = cells[within(rows[row].indexOf(from) + step[1], cells.length)];
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

function winnerEntries(view) {
  const timed = view.cells.filter((c) => c.ranked.length);
  const swatch = (kind) => node("span", { class: `swatch ${kind}` });
  const winners = [...groupBy(timed, (c) => code("strategy", c.ranked[0])).values()].sort((a, b) => b.length - a.length);
  return [
    ...winners.map((g) => ({ mark: icon(code("strategy", g[0].ranked[0])), name: value("strategy", g[0].ranked[0]) })),
    ...(timed.some((c) => c.ties.length) ? [{ mark: swatch("tie"), name: "hatched, ≈: no clear winner" }] : []),
    ...(timed.length < view.cells.length ? [{ mark: swatch("none"), name: "grey: failed or skipped" }] : []),
  ];
}
