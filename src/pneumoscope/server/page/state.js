// What the parts of the page share: the model, the images of the worklist, and the one that is shown.

export const $ = (id) => document.getElementById(id);
export const state = { model: null, images: [], current: null };

const DECISIONS = { uncertain: "uncertain", out_of_distribution: "out of distribution" };
export const isLabel = (decision) => !(decision in DECISIONS);
export const name = (decision) => DECISIONS[decision] ?? decision;

let number = 0;
export const nextKey = () => number++; // tells images of one name apart

export function say(place, words) {
  place.textContent = words;
  place.hidden = false;
}

export function announce(event) { // "listed": the worklist changed; "selected"; "reviewed"
  document.dispatchEvent(new Event(event));
}

export function makeCell(content, kind) {
  const cell = document.createElement("td");
  cell.append(content);
  if (kind) cell.className = kind;
  return cell;
}
