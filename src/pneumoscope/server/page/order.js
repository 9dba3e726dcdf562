// Which images the worklist shows, in which order, and which comes next.

import { isOpen } from "./answers.js";
import { $, name, state } from "./state.js";
import { group, isGrouped, keyOf } from "./studies.js";

const collator = new Intl.Collator(undefined, { numeric: true });
const VALUES = { name: (image) => image.name, probability: (image) => image.probability ?? null, decision: (image) => name(image.decision) ?? "" };
export const FILTERS = {
  "": () => true,
  // A reloaded page has its list, and the browser its filter, before the model is known.
  positive: (image) => !state.model || image.decision === state.model.positive,
  negative: (image) => !state.model || (state.model.labels.includes(image.decision) && image.decision !== state.model.positive),
  uncertain: (image) => image.decision === "uncertain",
  out_of_distribution: (image) => image.decision === "out_of_distribution",
  warned: (image) => image.state === "done" && image.warnings.length > 0,
  error: (image) => image.state === "error",
  open: (image) => image.state === "done" && isOpen(image),
};
export const order = { by: "probability", descending: true };

function compare(a, b) { // those that cannot be read come last, as a group of their own
  const failed = (a.state === "error") - (b.state === "error");
  if (failed) return failed;
  if (a.state === "error") return collator.compare(a.name, b.name) || a.key - b.key;
  const [x, y] = [VALUES[order.by](a), VALUES[order.by](b)];
  if (x === null || y === null) return (x === null) - (y === null) || a.key - b.key; // without a probability: last
  const sign = typeof x === "string" ? collator.compare(x, y) : x - y;
  return (order.descending ? -sign : sign) || a.key - b.key;
}

function list(also) { // the images shown, and another one at its place
  const words = $("search").value.trim().toLowerCase();
  const chosen = FILTERS[$("filter").value];
  const shown = (image) => chosen(image) && (!words || image.name.toLowerCase().includes(words));
  const images = state.images.filter((image) => image === also || shown(image)).sort(compare);
  return isGrouped() ? group(images) : images;
}

export const listShown = () => list(null);

// The next image of the list as filtered and sorted, also from one that is no longer in it.
export function findNext(by) {
  const { current } = state;
  const shown = listShown().filter((image) => image.state === "done" || image.state === "error");
  if (!current) return shown[by > 0 ? 0 : shown.length - 1];
  const at = shown.indexOf(current);
  if (at >= 0) return shown[Math.min(shown.length - 1, Math.max(0, at + by))];
  const all = list(current);
  const next = new Set(shown);
  const place = all.slice(0, all.indexOf(current)).filter((image) => next.has(image)).length; // of what follows it
  return shown[Math.min(shown.length - 1, Math.max(0, by > 0 ? place + by - 1 : place + by))];
}

// The image to read after this one. Behind the end of the list: the first that is still to be done, and `wrapped`.
export function findOnward() {
  const { current } = state;
  const all = list(current).filter((image) => image.state === "done" || image.state === "error");
  const next = all[all.indexOf(current) + 1];
  if (next) return { next, wrapped: false };
  return { next: all.find((image) => image !== current && image.state === "done" && isOpen(image) && !image.saving), wrapped: true };
}

// The first image of the next study or the one before. An image without a study counts as a study.
export function findNextStudy(by) {
  const shown = group(listShown()).filter((image) => image.state === "done" || image.state === "error");
  const firsts = shown.filter((image, at) => keyOf(image) === null || at === 0 || keyOf(image) !== keyOf(shown[at - 1]));
  const places = new Map(shown.map((image, at) => [image, at]));
  const current = places.get(state.current) ?? -1;
  const at = firsts.findLastIndex((image) => places.get(image) <= current);
  return firsts[Math.min(firsts.length - 1, Math.max(0, at + by))];
}
