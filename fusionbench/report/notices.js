// Warnings: what records note about their measurement, those of a kind told together, each with its cause and remedy.

const notesOf = (row) => (value("notes", row) || "").split(" | ").filter(Boolean);

// Of each distinct text of notes, the kinds it holds: a run of 100,000 jobs has few of them.
function noticeKinds() {
  if (D.noticed) return D.noticed;
  const known = D.notices.map((kind) => ({ ...kind, test: new RegExp(kind.pattern) })), others = new Map();
  const kindOf = (note) => {
    const found = known.find((kind) => kind.test.test(note));
    if (found) return found;
    const title = note.replace(/[0-9][0-9.,e+-]*/g, "#");
    if (!others.has(title)) others.set(title, { title: cut(note, 200), cause: "", remedy: "" });
    return others.get(title);
  };
  D.noticed = D.columns.notes.values.map((text) => new Map(String(text).split(" | ").filter(Boolean).map((note) => [kindOf(note), note])));
  return D.noticed;
}

function drawNotices(rows) {
  const codes = D.columns.notes.codes, of = noticeKinds(), kinds = new Map();
  for (const row of rows) {
    if (codes[row] < 0) continue;
    for (const [kind, note] of of[codes[row]]) {
      if (!kinds.has(kind)) kinds.set(kind, { kind, rows: [], example: note });
      kinds.get(kind).rows.push(row);
    }
  }
  const found = [...kinds.values()].sort((a, b) => b.rows.length - a.rows.length);
  $("#notices").hidden = !found.length;
  const jobs = new Set(found.flatMap((each) => each.rows)).size;
  $("#notices .body").replaceChildren(node("p", { class: "summary" }, `${plural(jobs, "job")} ${jobs === 1 ? "carries" : "carry"} ${found.length === 1 ? "one kind" : `${found.length} kinds`} of warning; the numbers stand, and this is what bears on them.`),
    ...found.slice(0, 60).map(({ kind, rows: members, example }) => node("details", { class: "failure warning", open: found.length <= 3 },
      node("summary", {}, node("span", { class: "badge" }, node("span", { class: "mark", "aria-hidden": "true" }, "⚠ "), node("bdi", {}, kind.title)), node("span", { class: "count" }, plural(members.length, "job"))),
      kind.cause ? node("p", {}, kind.cause) : null, kind.remedy ? node("p", {}, node("span", { class: "soft" }, "Remedy: "), kind.remedy, ".") : null,
      node("p", { class: "fine" }, "For example ", node("button", { type: "button", class: "link", onclick: () => openDetail(members[0]) }, breakable(candidateName(members[0]))), ": ", node("bdi", {}, `“${cut(example, 300)}”`)),
      node("code", { class: "command" }, command(members[0])))),
    found.length > 60 ? node("p", { class: "soft" }, `and ${found.length - 60} more kinds; find them in the table.`) : "");
}
