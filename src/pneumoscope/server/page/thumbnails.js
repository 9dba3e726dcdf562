// Small pictures of images, drawn one after the other from those that the page has, when there is time.

import { readPicture } from "./picture.js";
import { recallPictures } from "./pictures.js";
import { listPresets, listShades, listValues } from "./window_level.js";

const SIDE = 72; // pixels, of the longer side
const drawn = new WeakMap(); // by image
const due = new Map(); // canvases by image
let busy = false;

// Draws it now if it was drawn before, else soon.
export function drawSoon(image, canvas) {
  const small = drawn.get(image);
  if (small) return copy(small, canvas);
  due.set(image, canvas);
  work();
}

export function forget() { // what was due for a strip that is gone
  due.clear();
}

async function work() {
  if (busy) return;
  busy = true;
  for (const [image, canvas] of due) {
    due.delete(image);
    await new Promise((done) => (window.requestIdleCallback ?? setTimeout)(done));
    await draw(image, canvas).catch(() => {}); // its place stays empty, with its words beside it
  }
  busy = false;
}

async function draw(image, canvas) {
  if (image.kept?.length && !image.picture) await new Promise((done) => { if (!recallPictures(image, done)) done(); });
  if (!image.picture) return;
  const small = shrink(await readPicture(image.picture));
  drawn.set(image, small);
  copy(small, canvas);
}

function shrink({ width, height, levels, facts }) {
  const step = Math.max(width, height * facts.aspect, SIDE) / SIDE;
  const made = new OffscreenCanvas(Math.max(1, Math.round(width / step)), Math.max(1, Math.round((height * facts.aspect) / step)));
  const shades = listShades(listValues(facts), facts, listPresets(facts)[0], false);
  const part = new ImageData(made.width, made.height);
  const pixels = new Uint32Array(part.data.buffer);
  const down = height / made.height, across = width / made.width;
  const near = (from, size) => [0.25, 0.75].map((share) => Math.floor((from + share) * size)); // four of many: smooth enough
  for (let y = 0, at = 0; y < made.height; y++) {
    const rows = near(y, down);
    for (let x = 0; x < made.width; x++) {
      let sum = 0;
      for (const row of rows) for (const column of near(x, across)) sum += shades[levels[row * width + column]];
      pixels[at++] = 0xff000000 | ((sum >> 2) * 0x010101);
    }
  }
  made.getContext("2d").putImageData(part, 0, 0);
  return made;
}

function copy(small, canvas) {
  canvas.width = small.width;
  canvas.height = small.height;
  canvas.getContext("2d").drawImage(small, 0, 0);
}
