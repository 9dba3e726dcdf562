// One image, or two side by side whose zoom, place and window change together: two views, or a present and an earlier image.

import { Gestures } from "./gestures.js";
import { keep } from "./kept.js";
import { recall } from "./preferences.js";
import { $, announce, state } from "./state.js";
import { tools } from "./toolbar.js";
import { Viewer } from "./viewer.js";

const panes = [];
let touched = null; // the one that the tools work on
let linked = true;
let following = false;
let beside = null; // the image on the right
let describeActive = () => {};

export const viewer = open("screen"); // of the selected image
export const active = () => touched ?? viewer;
export const all = () => panes;
export function watch(job) { describeActive = job; } // called when the active image is shown in another way

function open(id) {
  const pane = new Viewer($(id));
  pane.gestures = new Gestures(pane, tools);
  pane.opacity = recall("opacity", 0.55);
  pane.changed = () => {
    link(pane);
    if (pane === active()) describeActive();
  };
  pane.measuring.changed = () => { if (state.images.includes(pane.image)) keep(pane.image); };
  const { signal } = pane.watching;
  for (const event of ["pointerdown", "focusin"]) pane.root.addEventListener(event, () => touch(pane), { signal });
  panes.push(pane);
  return pane;
}

function touch(pane) {
  if (touched === pane) return;
  touched = pane;
  mark();
  describeActive();
}

function mark() {
  for (const each of panes) each.root.classList.toggle("active", each === active() && isComparing());
}

// ---- changing together ----

function measure(pane) {
  const { picture, scale, centre, setting, presets: [start], inverted, turns, flipped } = pane;
  if (!picture || !setting) return null;
  return { picture, zoom: scale / pane.fitting(), centre, width: setting.width / start.width, level: (setting.centre - start.centre) / start.width, inverted, turns, flipped };
}

function link(pane) {
  const before = pane.measured;
  pane.measured = measure(pane);
  const other = panes.find((each) => each !== pane);
  const now = pane.measured;
  if (following || !linked || pane !== active() || !other?.picture || !now || before?.picture !== now.picture) return;
  following = true;
  follow(other, before, now);
  following = false;
}

function follow(other, before, now) { // by as much as the first was changed, in its own size and window
  const start = other.presets[0], sides = [["width", 0], ["height", 1]];
  const moved = sides.map(([size, side]) => (now.centre[side] - before.centre[side]) / now.picture[size]);
  const shift = toPicture(other, toScreen(now, moved)); // the same way on the screen, however each is turned
  if (now.zoom !== before.zoom) other.zoom(now.zoom / before.zoom);
  other.moveTo(sides.map(([size, side]) => other.centre[side] + shift[side] * other.picture[size]));
  if (now.width !== before.width || now.level !== before.level) {
    other.set({ width: other.setting.width * (now.width / before.width), centre: other.setting.centre + (now.level - before.level) * start.width });
  }
  if (now.inverted !== before.inverted) other.invert();
}

function toScreen({ turns, flipped }, [x, y]) { // as Viewer.matrix: first the flip, then turns to the right
  let way = [flipped ? -x : x, y];
  for (let i = 0; i < turns; i++) way = [-way[1], way[0]];
  return way;
}

function toPicture({ turns, flipped }, way) {
  let [x, y] = way;
  for (let i = 0; i < turns; i++) [x, y] = [y, -x];
  return [flipped ? -x : x, y];
}

// ---- two images ----

export const compared = () => beside;
export const isComparing = () => panes.length > 1;

export function keepBeside(image) { // shows it on the right, beside the selected one, until `endComparison`
  $("screen-2").hidden = false;
  $("screens").classList.add("two");
  $("compare").setAttribute("aria-pressed", "true");
  const pane = panes[1] ?? open("screen-2");
  beside = image;
  pane.evidence = viewer.evidence;
  mark();
  const nothing = pane.root.querySelector(".nothing");
  nothing.hidden = Boolean(image.picture);
  nothing.textContent = image.recalled === "pending" ? "Loading…" : "This image cannot be shown.";
  pane.canvas.setAttribute("aria-label", `Kept beside: image ${image.name}.`);
  if (!image.picture) pane.clear();
  else pane.show(image, image.picture, image.heatmap?.png).catch(() => { nothing.hidden = false; });
  announce("compared");
}

export function endComparison() {
  if (!isComparing()) return;
  panes[1].clear();
  panes[1].close();
  panes.pop();
  $("screen-2").hidden = true;
  $("screens").classList.remove("two");
  $("compare").setAttribute("aria-pressed", "false");
  touched = viewer;
  beside = null;
  mark();
  describeActive();
  announce("compared");
}

$("linked").addEventListener("click", () => {
  linked = !linked;
  $("linked").setAttribute("aria-pressed", String(linked));
});
$("close-second").addEventListener("click", () => {
  endComparison();
  announce("closed");
  $("image").focus();
});
