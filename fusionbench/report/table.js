// Table: sorts and filters every row, draws only those in sight, and saves what is left as CSV or JSON.

const ROW_PX = 34;
const COLUMNS = [
  { name: "strategy", title: "Strategy", px: 178 }, { name: "backend", title: "Backend", px: 86 },
  { name: "image", title: "Image", px: 64, right: true }, { name: "text", title: "Text", px: 64, right: true },
  { name: "dtype", title: "Dtype", px: 62 }, { name: "status", title: "Status", px: 78 },
  { name: "median_ms", title: "Median", px: 86, right: true, show: (v) => duration(v) },
  { name: "interval", title: "± 95 %", px: 74, right: true, show: share, read: (row) => (number("high_ms", row) - number("low_ms", row)) / 2 / number("median_ms", row) },
  { name: "peak_mib", title: "Peak MiB", px: 88, right: true, show: (v) => digits(v) },
  { name: "cache_mib", title: "Cache MiB", px: 92, right: true, show: (v) => digits(v) },
  { name: "rel_l2", title: "Rel. error", px: 88, right: true, show: small },
  { name: "tflops", title: "TFLOP/s", px: 84, right: true, show: (v) => digits(v) },
  { name: "of_bound", title: "Of bound", px: 86, right: true, show: share }, { name: "bound_by", title: "Bound by", px: 88 },
  { name: "device", title: "Device", px: 76 }, { name: "mode", title: "Mode", px: 128 },
  { name: "contention", title: "Waited", px: 76, right: true, show: share },
  { name: "samples", title: "Samples", px: 84, right: true },
  { name: "batch", title: "Batch", px: 68, right: true }, { name: "width", title: "Width", px: 68, right: true }, { name: "heads", title: "Heads", px: 70, right: true },
  { name: "projector", title: "Projector", px: 104 }, { name: "machine", title: "Machine", px: 140 }, { name: "reason", title: "Reason", px: 320 },
];
const read = (column, row) => (column.read ? column.read(row) : value(column.name, row));
const table = { rows: [], active: 0, pool: [] };

function textHits(words) {
  if (!words.length) return null;
  const names = ["strategy", "backend", "reason", "kernels", "notes", "status", "dtype", "device", "case", "machine"].filter((n) => D.columns[n]);
  return words.map((word) => names.map((name) => {
    const column = D.columns[name];
    return [column.codes, Uint8Array.from(column.values, (v) => (String(v).toLowerCase().includes(word) ? 1 : 0))];
  }).filter(([, hits]) => hits.includes(1)));
}

function tableRows(rows, state) {
  const hits = textHits(state.find.toLowerCase().split(/\s+/).filter(Boolean));
  let kept = hits ? rows.filter((row) => hits.every((columns) => columns.some(([codes, hit]) => codes[row] >= 0 && hit[codes[row]]))) : rows.slice();
  const column = COLUMNS.find((c) => c.name === state.sort);
  return column ? sortRows(kept, column, state.descending) : measuredFirst(kept);
}

function measuredFirst(rows) {
  const skipped = D.columns.status.values.indexOf("skipped"), codes = D.columns.status.codes;
  const sorted = new Int32Array(rows.length);
  let kept = 0;
  for (const wanted of [0, 1, 2]) {
    for (const row of rows) if ((isOk(row) ? 0 : codes[row] === skipped ? 2 : 1) === wanted) sorted[kept++] = row;
  }
  return sorted;
}

// One number per row: texts have the rank of their dictionary entry.
function sortKeys(rows, column) {
  const source = D.columns[column.name];
  const keys = new Float32Array(rows.length).fill(NaN);
  if (source && source.codes) {
    const ranks = source.values.map((v, c) => [v, c]).sort(([a], [b]) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))));
    const rankOf = new Float32Array(ranks.length);
    ranks.forEach(([, c], rank) => { rankOf[c] = rank; });
    rows.forEach((row, i) => { if (source.codes[row] >= 0) keys[i] = rankOf[source.codes[row]]; });
  } else if (column.read) rows.forEach((row, i) => { keys[i] = column.read(row); });
  else if (source) rows.forEach((row, i) => { keys[i] = source.numbers[row]; });
  return keys;
}

// A key's bits above a row's number make one 64-bit integer, and those sort without a function: a million rows in a tenth
// of the time. A float's bits rise with it once the sign is turned; what is missing comes last either way.
function sortRows(rows, column, descending) {
  const keys = sortKeys(rows, column), bits = new Uint32Array(keys.buffer);
  const paired = new BigUint64Array(rows.length), halves = new Uint32Array(paired.buffer);
  for (let i = 0; i < rows.length; i++) {
    const rising = bits[i] & 0x80000000 ? ~bits[i] : bits[i] | 0x80000000;
    halves[2 * i] = rows[i];
    halves[2 * i + 1] = Number.isNaN(keys[i]) ? 0xffffffff : descending ? ~rising : rising;
  }
  paired.sort();
  return Int32Array.from(rows, (_, i) => halves[2 * i]);
}

function buildTable(state, changed) {
  table.columns = COLUMNS.filter((c) => c.read || (D.columns[c.name] && (D.columns[c.name].numbers || D.columns[c.name].values.some((v) => v !== ""))));
  const template = table.columns.map((c) => `${c.px}px`).join(" ");
  const wide = table.columns.reduce((sum, c) => sum + c.px, 0);
  table.head = node("div", { class: "head row", role: "row", "aria-rowindex": 1 }, ...table.columns.map((c) => node("div", { role: "columnheader", class: c.right ? "right" : "" },
    node("button", { type: "button", "data-sort": c.name, onclick: () => changed(c.name) }, c.title))));
  table.body = node("div", { class: "body", role: "rowgroup" });
  table.box = $("#table .rows");
  table.box.style.setProperty("--columns", template);
  table.box.style.setProperty("--wide", `${wide}px`);
  table.box.replaceChildren(table.head, table.body);
  table.box.addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
  table.box.addEventListener("keydown", moveRow);
  table.body.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) { table.active = Number(row.dataset.index); drawRows(); openDetail(table.rows[table.active]); }
  });
  new ResizeObserver(drawRows).observe(table.box);
}

function showTable(rows, state) {
  table.rows = tableRows(rows, state);
  table.active = 0;
  for (const cell of table.head.children) {
    const mine = $("button", cell).dataset.sort === state.sort;
    cell.setAttribute("aria-sort", mine ? (state.descending ? "descending" : "ascending") : "none");
  }
  table.body.style.height = `${table.rows.length * ROW_PX}px`;
  table.box.scrollTop = 0;
  table.box.setAttribute("aria-rowcount", table.rows.length + 1);
  table.box.style.height = `min(70vh, ${Math.max(3, table.rows.length + 1) * ROW_PX + 18}px)`;
  $("#table .summary").textContent = table.rows.length ? `${plural(table.rows.length, "job")}${table.rows.length < D.rows ? ` of ${thousands(D.rows)}` : ""}.` : "No job matches these filters.";
  drawRows();
}

function drawRows() {
  const { box, body, rows, columns } = table;
  const first = Math.max(0, Math.floor(box.scrollTop / ROW_PX) - 6);
  const count = Math.min(rows.length - first, Math.ceil(box.clientHeight / ROW_PX) + 12);
  while (table.pool.length < count) table.pool.push(node("div", { class: "row", role: "row" }, ...columns.map((c) => node("div", { role: "gridcell", class: c.right ? "right" : "" }))));
  for (let k = 0; k < count; k++) {
    const element = table.pool[k], index = first + k, row = rows[index];
    element.style.transform = `translateY(${index * ROW_PX}px)`;
    element.dataset.index = index;
    element.id = `row-${index}`;
    element.setAttribute("aria-rowindex", index + 2);
    element.classList.toggle("active", index === table.active);
    columns.forEach((c, i) => {
      const v = read(c, row);
      const text = v === null || v === undefined || (typeof v === "number" && Number.isNaN(v)) ? "–" : c.show ? c.show(v) : typeof v === "number" ? thousands(v) : String(v).slice(0, 120);
      element.children[i].textContent = text;
      if (c.name === "status") element.children[i].dataset.status = v;
    });
  }
  body.replaceChildren(...table.pool.slice(0, Math.max(0, count)));
  if (rows.length) box.setAttribute("aria-activedescendant", `row-${table.active}`);
  else box.removeAttribute("aria-activedescendant");
}

function moveRow(event) {
  if (event.target !== table.box) return;
  const page = Math.max(1, Math.floor(table.box.clientHeight / ROW_PX) - 2);
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
  if (event.key === "Enter" && table.rows.length) { event.preventDefault(); openDetail(table.rows[table.active]); return; }
  if (step === undefined) return;
  event.preventDefault();
  table.active = Math.min(table.rows.length - 1, Math.max(0, table.active + step));
  const top = table.active * ROW_PX, sight = table.box.clientHeight - 2 * ROW_PX;
  if (top < table.box.scrollTop) table.box.scrollTop = top;
  else if (top > table.box.scrollTop + sight) table.box.scrollTop = top - sight;
  drawRows();
}

function openDetail(row) {
  const dialog = $("#detail");
  const facts = carried().map((name) => [name, value(name, row)]).filter(([, v]) => v !== null && v !== "");
  $("#detail-title").textContent = candidateName(row);
  $(".body", dialog).replaceChildren(
    node("p", { class: "soft" }, `${shapeName(row)}, ${conditionName(row)}`),
    node("p", {}, "Run this job again:"), node("code", { class: "command" }, command(row)),
    node("dl", { class: "facts-list" }, ...facts.flatMap(([name, v]) => [node("dt", {}, name), node("dd", {}, node("bdi", {}, typeof v === "number" && !Number.isInteger(v) ? String(v) : v))])),
  );
  dialog.showModal();
}

// A spreadsheet runs a cell that begins with one of these.
const csvCell = (v) => {
  if (v === null || v === undefined || (typeof v === "number" && Number.isNaN(v))) return "";
  if (typeof v === "number") return String(v);
  const guarded = /^[=+\-@\t\r]/.test(v) ? `'${v}` : String(v);
  return /[",\n\r]/.test(guarded) ? `"${guarded.replace(/"/g, '""')}"` : guarded;
};

const carried = () => Object.keys(D.columns).filter((name) => !["cell", "condition", "case"].includes(name));

// In pieces: a million rows are longer than the longest text a browser can hold.
function* csvLines() {
  const names = carried();
  yield ["key", ...names].join(",") + "\r\n";
  for (const row of table.rows) yield [jobKey(row), ...names.map((name) => value(name, row))].map(csvCell).join(",") + "\r\n";
}

function* jsonLines() {
  const names = carried();
  let before = "[\n";
  for (const row of table.rows) {
    yield before + JSON.stringify({ key: jobKey(row), ...Object.fromEntries(names.map((name) => [name, value(name, row)])) });
    before = ",\n";
  }
  yield table.rows.length ? "\n]\n" : "[]\n";
}

function pieces(lines, most = 5000) {
  const found = [];
  let held = [];
  for (const line of lines) {
    if (held.push(line) === most) { found.push(held.join("")); held = []; }
  }
  return [...found, held.join("")];
}

function save(lines, name, type) {
  const link = node("a", { href: URL.createObjectURL(new Blob(pieces(lines), { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
