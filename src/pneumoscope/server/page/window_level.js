// Windows in the units of the file: from stored levels to shades of grey (DICOM PS3.3 C.11.1 and C.11.2).

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const lookUp = ({ first, entries }, value) => entries[clamp(Math.round(value - first), 0, entries.length - 1)];

// The value of each level, after the modality LUT.
export function listValues(facts) {
  const { lowest, bits, slope = 1, intercept = 0, modality } = facts;
  const values = new Float64Array(2 ** bits);
  for (let i = 0; i < values.length; i++) values[i] = modality ? lookUp(modality, i + lowest) : (i + lowest) * slope + intercept;
  return values;
}

const named = (name, otherwise) => (name ? name[0].toUpperCase() + name.slice(1).toLowerCase() : otherwise);

// What the file offers, the one to start with first, and the full range.
export function listPresets(facts) {
  const { windows = [], voi, full, start } = facts;
  const own = windows.map(({ centre, width, name }, i) => ({
    name: named(name, windows.length > 1 ? `Window ${i + 1} of the file` : "Window of the file"), centre, width, shape: facts.function || "LINEAR",
  }));
  if (voi) {
    const width = Math.max(1, voi.entries.length - 1);
    own.unshift({ name: named(voi.name, "Look-up table of the file"), centre: voi.first + width / 2, width, shape: "TABLE" });
  }
  const [low, high] = full;
  const whole = { name: "Full range", centre: (low + high) / 2, width: Math.max(high - low, 1e-6), shape: "LINEAR_EXACT" };
  return own.length && start !== "full" ? [...own, whole] : [whole, ...own];
}

// From 0, black, to 1, white.
function place(value, { centre, width, shape }, voi) {
  if (shape === "TABLE") { // moved and stretched by what the reader changes
    const whole = Math.max(1, voi.entries.length - 1);
    return lookUp(voi, voi.first + whole / 2 + ((value - centre) * whole) / width) / (2 ** voi.bits - 1);
  }
  if (shape === "SIGMOID") return 1 / (1 + Math.exp((-4 * (value - centre)) / width)); // C.11.2.1.3.1
  if (shape !== "LINEAR_EXACT" && width > 1) return (value - centre + 0.5) / (width - 1) + 0.5; // C.11.2.1.2.1
  return (value - centre) / width + 0.5;
}

// The shade of each level; padding stays black.
export function listShades(values, facts, setting, inverted) {
  const shades = new Uint8ClampedArray(65536);
  const [first, last] = facts.padding ?? [1, 0];
  const white = facts.inverted !== inverted;
  for (let i = 0; i < values.length; i++) {
    const stored = i + facts.lowest;
    if (stored >= first && stored <= last) continue;
    const shade = 255 * clamp(place(values[i], setting, facts.voi), 0, 1);
    shades[i] = white ? 255 - shade : shade;
  }
  return shades;
}

// How far one step, or the width of the screen, changes a window: from what the image holds.
export function measureSpan({ full: [low, high] }) {
  return Math.max(high - low, 1e-6);
}

export function format(value, span) {
  const digits = span >= 50 ? 0 : span >= 5 ? 1 : 3;
  return Number(value.toFixed(digits)).toLocaleString("en", { useGrouping: false, maximumFractionDigits: digits });
}
