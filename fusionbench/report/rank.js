// Ranking: which candidate is fastest in a cell (one condition, one image × text length), and whether that is sure.

// A candidate is a strategy with its best backend, or a strategy with one backend.
const candidate = (row, by) => (by === "strategy" ? code("strategy", row)
  : code("strategy", row) * D.columns.backend.values.length + code("backend", row));

function candidateName(row) {
  return `${value("strategy", row)}\u00a0·\u00a0${value("backend", row)}`; // one name, one line
}

// The timed rows of each cell, the best row of each candidate only, fastest first.
function rankCells(rows, by) {
  const cells = new Map();
  const median = D.columns.median_ms ? D.columns.median_ms.numbers : null;
  let cell = null; // of the row before, and mostly of this one: the file keeps the rows of a cell together
  for (const row of rows) {
    const key = code("cell", row);
    if (!cell || cell.key !== key) cell = cells.get(key);
    if (!cell) cells.set(key, (cell = { key, first: row, best: new Map(), failed: 0, total: 0 }));
    cell.total++;
    if (!isOk(row)) { if (value("status", row) !== "skipped") cell.failed++; continue; }
    const who = candidate(row, by);
    const held = cell.best.get(who);
    if (held === undefined || median[row] < median[held]) cell.best.set(who, row);
  }
  for (const cell of cells.values()) {
    cell.ranked = [...cell.best.values()].sort((a, b) => median[a] - median[b]);
    cell.ties = cell.ranked.slice(1).filter((row) => ties(cell.ranked[0], row));
    cell.condition = code("condition", cell.first);
    cell.image = value("image", cell.first);
    cell.text = value("text", cell.first);
  }
  return cells;
}

const ties = (winner, other) => number("low_ms", other) <= number("high_ms", winner);

function ratio(winner, other) {
  return {
    value: number("median_ms", other) / number("median_ms", winner),
    low: number("low_ms", other) / number("high_ms", winner),
    high: number("high_ms", other) / number("low_ms", winner),
  };
}

const times = (v) => `${v < 10 ? v.toFixed(2) : v < 100 ? v.toFixed(1) : thousands(Math.round(v))}\u00a0×`;

// Conditions by how much was timed in them; the shape that speaks for one has the most candidates, then the most tokens.
function summariseConditions(cells) {
  const found = new Map();
  for (const cell of cells.values()) {
    let c = found.get(cell.condition);
    if (!c) found.set(cell.condition, (c = { id: cell.condition, first: cell.first, cells: [], timed: 0, total: 0, main: null }));
    c.cells.push(cell);
    c.total += cell.total;
    c.timed += cell.ranked.length;
    const better = !c.main || cell.ranked.length > c.main.ranked.length
      || (cell.ranked.length === c.main.ranked.length && cell.image + cell.text > c.main.image + c.main.text);
    if (better) c.main = cell;
  }
  return [...found.values()].sort((a, b) => b.timed - a.timed || a.id - b.id);
}

const EQUAL = 0.005; // so near to 1 a ratio of parameters is a matter of biases

// The parts of a sentence; {b: …} is a name or figure to emphasise, {name: …} one that is not, {soft: …} stands back.
function verdict(cell) {
  const [winner, second] = cell.ranked;
  if (winner === undefined) return ["Nothing was timed at ", { b: shapeName(cell.first) }, "."];
  const time = duration(number("median_ms", winner));
  if (second === undefined) return ["Only ", { b: candidateName(winner) }, ` was timed: ${time}.`];
  if (cell.ties.length) {
    const names = [winner, ...cell.ties].slice(0, 3).map(candidateName);
    const more = cell.ties.length - 2;
    const list = more > 0 ? `${names.join(", ")} and ${more} more` : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
    return ["No clear winner: ", { b: list }, ` ${names.length === 2 ? "both" : "all"} take about ${time}; their 95 % intervals overlap.`];
  }
  const r = ratio(winner, second);
  return [{ b: candidateName(winner) }, " is ", { b: times(r.value) }, " faster than ", { name: candidateName(second) }, ` [${r.low.toFixed(2)}, ${r.high.toFixed(2)}]`
    + `${parameters(winner, second)}: ${time} against ${duration(number("median_ms", second))}.`];
}

// Nothing where one of the two has none, or where they were not counted.
function parameters(winner, other) {
  const [own, others] = [number("params", winner), number("params", other)];
  if (!(own > 0 && others > 0)) return "";
  return Math.abs(own / others - 1) < EQUAL ? " at equal parameters" : ` with ${digits(own / others, 2)}\u00a0× the parameters`;
}

// The verdict of a shape, with where it holds before it.
function headline(cell) {
  const row = cell.ranked[0];
  if (row === undefined) return verdict(cell);
  const where = [`image ${thousands(cell.image)} × text ${thousands(cell.text)}`, value("dtype", row), value("hardware", row) || value("device", row)];
  return [{ soft: `For ${where.join(", ")}: ` }, ...verdict(cell)];
}

function sentence(parts) {
  return parts.map((part) => (typeof part === "string" ? part : part.b ?? part.name ?? part.soft)).join("");
}
