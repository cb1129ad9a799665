// Curves: the shapes along one axis, through the chosen shape, with all else as it is there.

// An axis of sizes belongs to the condition: its points come from other conditions that agree in the rest.
const AXES = {
  text: { title: "text tokens", span: (a, b) => `From ${a} to ${b} text tokens` },
  image: { title: "image tokens", span: (a, b) => `From ${a} to ${b} image tokens` },
  total: { title: "image + text tokens", span: (a, b) => `From ${a} to ${b} image + text tokens` },
  width: { title: "width", span: (a, b) => `From width ${a} to ${b}`, sizes: true },
  batch: { title: "batch size", span: (a, b) => `From batch size ${a} to ${b}`, sizes: true },
};
const LENGTHS = Object.keys(AXES).filter((axis) => !AXES[axis].sizes);

const lengthOf = (axis, row) => (axis === "total" ? value("image", row) + value("text", row) : value(axis, row));

// {cells: those with a timed candidate, shortest first; fixed: in words what all of them share}
function curve(view, axis) {
  const found = !view.shape ? { cells: [], fixed: "" } : AXES[axis].sizes ? alongSizes(view, axis) : alongLengths(view, axis);
  const timed = found.cells.filter((c) => c.ranked.length);
  return { cells: timed.sort((a, b) => lengthOf(axis, a.first) - lengthOf(axis, b.first)), fixed: found.fixed };
}

function alongLengths({ cells, shape }, axis) {
  if (axis !== "total") {
    const other = axis === "text" ? "image" : "text";
    return { cells: cells.filter((c) => c[other] === shape[other]), fixed: `${other} fixed at ${thousands(shape[other])} tokens` };
  }
  const ratioOf = (c) => Math.log(c.image / c.text);
  return { cells: cells.filter((c) => Math.abs(ratioOf(c) - ratioOf(shape)) < 0.01), fixed: `image : text fixed at ${round(shape.image / shape.text)} : 1` };
}

// What may follow the width, in the order in which it is tried: models grow by heads of one size, and with their inputs.
const each = (row, ...names) => names.map((name) => value(name, row)).join();
const over = (row, ...names) => names.map((name) => value(name, row) / value("width", row)).join();
const FOLLOWING = {
  batch: [{ key: () => "", fixed: () => "" }],
  width: [
    { key: (row) => each(row, "heads", "image_width", "text_width"), fixed: (row) => `${value("heads", row)} heads` },
    { key: (row) => `${over(row, "heads")}|${each(row, "image_width", "text_width")}`, fixed: (row) => `head size fixed at ${round(value("width", row) / value("heads", row))}` },
    { key: (row) => over(row, "heads", "image_width", "text_width"), fixed: () => "head size and the ratio to the input widths fixed" },
  ],
};

function alongSizes({ conditions, condition, shape }, axis) {
  if (value(axis, shape.first) === null) return { cells: [], fixed: "" };
  const free = axis === "width" ? ["width", "heads", "image_width", "text_width"] : [axis];
  const rest = CONDITION.filter((name) => !free.includes(name));
  const same = (c) => rest.every((name) => code(name, c.first) === code(name, condition.first)) && value(axis, c.first) !== null;
  const family = conditions.filter(same);
  const tried = FOLLOWING[axis].map(({ key, fixed }) => ({ members: family.filter((c) => key(c.first) === key(shape.first)), fixed: fixed(shape.first) }));
  const { members, fixed } = tried.sort((a, b) => b.members.length - a.members.length)[0];
  const cells = members.flatMap((c) => c.cells.filter((cell) => cell.image === shape.image && cell.text === shape.text));
  return { cells, fixed: [shapeName(shape.first), fixed].filter(Boolean).join(", ") };
}

// How many points the curve along each axis has; the axis with the most speaks where none is chosen.
const reach = (view, axes) => axes.map((axis) => [axis, curve(view, axis).cells.length]).sort((a, b) => b[1] - a[1]);

// The axis that is chosen, else the one that says most; the select offers those along which there is a curve.
function axisOf(reached, id, chosen) {
  const axis = chosen || reached[0][0];
  for (const option of $(id).options) {
    const points = reached.find(([name]) => name === option.value)?.[1] ?? 0;
    option.disabled = option.hidden = points < 2 && option.value !== axis;
  }
  $(id).value = axis;
  return axis;
}
