// Fits: the power by which a time grows, on the tail of a curve where the logarithms lie on a line.

const STRAIGHT = Math.log(1.05); // as far as a median may lie from the line, or as its own interval reaches
const NOISE = 0.02; // two measurements of one job differ by so much (METHODOLOGY.md), whatever the intervals say
const LOOSEST = 0.25; // a power that is not known to within this is not said
const LEAST_LENGTHS = 3;
const STUDENT = [NaN, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]; // 97.5 %, by degrees of freedom
const student = (df) => STUDENT[df] ?? 1.96 + 2.65 / df;

// One row as a point of the fit: logarithms, how far off the median may be, and how sure it is.
function logPoint(x, row) {
  const half = Math.log(number("high_ms", row) / number("low_ms", row)) / 2;
  return { x: Math.log(x), y: Math.log(number("median_ms", row)), half, sd: Math.hypot(half / 1.96, NOISE) };
}

// Weighted least squares; the interval is the wider of what the measured intervals and what the residuals allow.
function line(points) {
  const weights = points.map((p) => p.sd ** -2);
  const total = weights.reduce((a, b) => a + b, 0);
  const mean = (of) => points.reduce((sum, p, i) => sum + weights[i] * of(p), 0) / total;
  const [x, y] = [mean((p) => p.x), mean((p) => p.y)];
  const spread = total * mean((p) => (p.x - x) ** 2);
  const power = (total * mean((p) => (p.x - x) * (p.y - y))) / spread;
  const at = (where) => y + power * (where - x);
  const df = points.length - 2;
  const sigmas = Math.max(1.96, student(df) * Math.sqrt((total * mean((p) => (p.y - at(p.x)) ** 2)) / df));
  const half = sigmas / Math.sqrt(spread);
  return { power, low: power - half, high: power + half, at, band: (where) => sigmas * Math.sqrt(1 / total + (where - x) ** 2 / spread), points };
}

// The longest tail on a line that fixes the power; null with fewer than 3 lengths, {crooked: true, power} with that of the
// last step where there is none.
function tail(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x);
  let found = sorted.length < LEAST_LENGTHS ? null : { crooked: true, power: line(sorted.slice(-2)).power };
  for (let first = sorted.length - LEAST_LENGTHS; first >= 0; first--) {
    const tried = line(sorted.slice(first));
    if (tried.points.some((p) => Math.abs(p.y - tried.at(p.x)) > Math.max(STRAIGHT, p.half))) break;
    if (tried.high - tried.low <= 2 * LOOSEST) found = tried;
  }
  return found;
}

const lengthsOf = (fit) => fit.points.map((p) => Math.round(Math.exp(p.x)));
const hundredths = (v) => v.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "−");
const powerInterval = (fit) => `[${hundredths(fit.low)}, ${hundredths(fit.high)}]`;

function band(fit, colour) {
  const [first, last] = [fit.points[0].x, fit.points.at(-1).x];
  const xs = Array.from({ length: 17 }, (_, i) => first + ((last - first) * i) / 16);
  const edge = (sign) => xs.map((x) => Math.exp(fit.at(x) + sign * fit.band(x)));
  return { type: "scatter", mode: "lines", name: "band", fill: "toself", fillcolor: `${colour}38`, line: { width: 0 }, hoverinfo: "skip",
    x: [...xs, ...[...xs].reverse()].map(Math.exp), y: [...edge(1), ...edge(-1).reverse()] };
}
