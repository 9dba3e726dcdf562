// The pictures of images: those of the latest stay in memory, the others are read again from what the browser keeps, from
// the service, or from a file that is chosen again.

import { isKept, keep, recall, whenStored } from "./kept.js";
import { call, predict, Refused, toBlob } from "./service.js";
import { state } from "./state.js";

const IN_MEMORY = 16;
const latest = new Set();

function use(image) {
  latest.delete(image);
  latest.add(image);
  for (const old of latest) {
    if (latest.size <= IN_MEMORY) break;
    latest.delete(old);
    if (old !== state.current) release(old);
  }
}

export function release(image) {
  if (!isKept(image) || image.state !== "done") return;
  image.picture = null;
  if (image.heatmap) image.heatmap.png = null;
  image.source = null;
}

whenStored((image) => {
  if (image === state.current) return use(image);
  setTimeout(() => { if (!latest.has(image)) release(image); }, 3000);
});

const awaited = new WeakMap(); // what is to be done when the pictures of an image are there

// Whether the pictures have to be fetched first; calls `done` when they are there, or cannot be had.
export function recallPictures(image, done) {
  if (image.picture) {
    use(image);
    return false;
  }
  if (image.recalled === "pending") {
    awaited.get(image)?.push(done);
    return true;
  }
  if (image.recalled || !(image.kept?.length || image.image_kept)) return false;
  image.recalled = "pending";
  awaited.set(image, [done]);
  (image.kept?.length ? recall(image) : fetchKept(image)).catch(() => {}).then(() => {
    image.recalled = !image.picture; // without success not again: the page says so
    if (image.picture) use(image);
    const waiting = awaited.get(image);
    awaited.delete(image);
    for (const each of waiting) each(image);
  });
  return true;
}

async function fetchKept(image) { // the file that the service has kept
  if (!state.images.includes(image)) { // only shown beside another: its evidence is not needed
    image.picture = await (await call(`v1/predictions/${image.id}/image`)).blob();
    return;
  }
  const content = await (await call(`v1/predictions/${image.id}/image?original=true`)).blob();
  await showFile(image, new File([content], image.name));
}

// Shows a file with a prediction that exists already; it is read once more, but not stored.
export async function showFile(image, file) {
  const options = { invert: image.invert ?? false, any: true, heatmap: state.model.heatmaps && !image.withheld, store: false, blind: Boolean(image.withheld) };
  const { picture, heatmap, sha256, fingerprint } = await predict(file, options);
  if (sha256 !== image.sha256) throw new Refused(0, `${file.name} is another file: its content differs.`);
  Object.assign(image, { picture: toBlob(picture), kept: null, recalled: false });
  if (heatmap && fingerprint === image.fingerprint) image.heatmap = { ...heatmap, png: toBlob(heatmap.png) };
  if (image.withheld) image.source = file; // for the evidence, once it is read
  keep(image);
}
