// What stands in the corners and at the sides of an image, from its file and from how it is shown.

import { format, measureSpan } from "./window_level.js";

export const PLANES = { patient: "", detector: " at the detector", unknown: ", calibration unknown" }; // where a spacing holds
const SEXES = { M: "male", F: "female", O: "other sex" };
const OPPOSITE = { A: "P", P: "A", L: "R", R: "L", H: "F", F: "H" };

const oppose = (direction) => [...direction].map((letter) => OPPOSITE[letter]).join("");

function describeAge(age) {
  if (age === null || age === undefined) return null;
  return age >= 2 ? `${Math.floor(age)} years` : age >= 1 / 6 ? `${Math.floor(age * 12)} months` : `${Math.round(age * 365.25)} days`;
}

function listFacts(image, picture) {
  const { facts, width, height } = picture;
  const sides = [image.width ?? width * facts.reduced, image.height ?? height * facts.reduced];
  const size = `${sides[0]} × ${sides[1]}, ${facts.bits} bits`;
  const { spacing } = facts;
  const apart = spacing && (spacing.rows === spacing.columns ? `${+spacing.rows.toFixed(3)} mm` : `${+spacing.columns.toFixed(3)} × ${+spacing.rows.toFixed(3)} mm`);
  return {
    "top-left": [image.name, [describeAge(image.age), SEXES[image.sex]].filter(Boolean).join(", "), [image.view, image.laterality].filter(Boolean).join(", ")],
    "top-right": [image.date, facts.kvp && `${+facts.kvp.toFixed(1)} kVp`],
    "bottom-right": [size, facts.reduced > 1 && `shown at 1/${facts.reduced}`, apart ? `Pixel ${apart}${PLANES[spacing.plane]}` : "No spacing in the file"],
  };
}

// How an image is turned, in words: only where it is.
export function describeTurn({ turns, flipped }) {
  if (flipped && turns % 2 === 0) return turns ? "flipped upside down" : "flipped left to right";
  return [flipped && "flipped left to right", ["", "turned right by 90°", "turned by 180°", "turned left by 90°"][turns]].filter(Boolean).join(", ");
}

// The directions of the right, lower, left and upper side of the screen, where the file says them.
export function findSides({ orientation }, { turns, flipped }) {
  if (!orientation) return null;
  const right = flipped ? oppose(orientation[0]) : orientation[0], down = orientation[1];
  const sides = [right, down, oppose(right), oppose(down)];
  return sides.map((_, i) => sides[(i - turns + 4) % 4]);
}

export function fillOverlays(root, viewer) {
  const { picture, image } = viewer;
  const lines = picture ? listFacts(image, picture) : {};
  for (const corner of ["top-left", "top-right", "bottom-right"]) {
    root.querySelector(`.${corner}`).replaceChildren(...(lines[corner] ?? []).filter(Boolean).map((text) => Object.assign(document.createElement("span"), { textContent: text })));
  }
  const outside = picture ? (image.warnings ?? []).filter((warning) => /^outside the intended use/.test(warning)) : [];
  root.querySelector(".outside-use").hidden = !outside.length;
  root.querySelector(".outside-use").textContent = outside.map((words) => words[0].toUpperCase() + words.slice(1)).join(". ");
  const turned = picture ? describeTurn(viewer) : "";
  root.querySelector(".caption").textContent = picture ? describeView(viewer) : "";
  root.querySelector(".turned").textContent = turned && turned[0].toUpperCase() + turned.slice(1);
  const sides = picture ? findSides(picture.facts, viewer) : null;
  ["right", "bottom", "left", "top"].forEach((side, i) => { root.querySelector(`.side-${side}`).textContent = sides ? sides[i] : ""; });
}

export function describeView({ picture, setting, inverted, scale, map, evidence }) {
  const span = measureSpan(picture.facts);
  const words = [`W ${format(setting.width, span)} L ${format(setting.centre, span)}`, `zoom ${Math.round((100 * scale) / picture.facts.reduced)}%`];
  if (inverted) words.push("inverted");
  if (map && evidence) words.push("evidence shown");
  return words.join(" · ");
}
