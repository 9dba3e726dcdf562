// What the parts of the page share: the model, the images of the worklist, and the one that is shown.

export const $ = (id) => document.getElementById(id);
export const state = { model: null, images: [], current: null, mode: "assist", bound: false };

const DECISIONS = { uncertain: "uncertain", out_of_distribution: "out of distribution" };
export const isLabel = (decision) => !(decision in DECISIONS);
export const name = (decision) => DECISIONS[decision] ?? decision;

// Which kind of decision: a chip has a colour and a shape for each.
export function kindOf({ state: progress, decision }) {
  if (progress === "error") return "unreadable";
  if (!decision) return "";
  if (!isLabel(decision)) return decision === "uncertain" ? "uncertain" : "outside";
  if (!state.model) return ""; // which label is the positive one is not known yet
  return state.model.positive && decision !== state.model.positive ? "negative" : "positive";
}

export function round(probability) { // neither certain nor impossible
  if (probability === null || probability === undefined) return "–";
  return probability >= 0.9995 ? ">0.999" : probability < 0.0005 ? "<0.001" : probability.toFixed(3);
}

let number = 0;
export const nextKey = () => number++; // tells images of one name apart
export function skipKeys(used) { number = Math.max(number, used + 1); }

export function say(place, words) {
  place.textContent = words;
  place.hidden = false;
}

export function announce(event) { // "listed": the worklist changed; "selected"; "reviewed"
  document.dispatchEvent(new Event(event));
}

export function create(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

export function makeChip(image, words = name(image.decision) ?? "") {
  return create("span", { class: `chip ${kindOf(image)}` }, words);
}

export const showTime = (moment) => new Date(moment).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
