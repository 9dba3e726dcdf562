// A reader's own reading of an image, before the model's answer is shown, and after it.

import { keep, recall } from "./kept.js";
import { lose } from "./outage.js";
import { viewer } from "./panes.js";
import { findName, reader } from "./reader.js";
import { call, Lost, predict, Refused, toBlob } from "./service.js";
import { $, announce, create, makeChip, name, state } from "./state.js";
import { teach } from "./teaching.js";

const SURE = [["guess", 0], ["low", 25], ["medium", 50], ["high", 75], ["certain", 100]];
const NOTHING = { decision: null, predicted_label: null, probability: null, probabilities: {}, prediction_set: [], ood_score: null, group: null, warnings: [], explanation: null, uncertain_range: null, heatmap: null, reviews: [] };
let shown = null; // the image whose reading is in the form
let since = 0; // when it was shown
let busy = false;

// Which reading comes next: "first" before the model's answer, "second" with it, or none.
export function phaseOf(image) {
  if (state.mode === "assist" || image.state !== "done" || (state.mode === "teaching" && image.case === undefined)) return null;
  if (image.withheld) return "first";
  if (image.case !== undefined) return null;
  return image.readings?.length && !image.readings.at(-1).with_ai ? "second" : null;
}

export const hides = (image) => Boolean(image.withheld);
export const withhold = (image) => Object.assign(image, NOTHING, { withheld: true });
const words = ({ label, confidence }) => `${label ?? "cannot tell"}${confidence === null || confidence === undefined ? "" : ` (${SURE.find(([, value]) => value >= confidence)[0]})`}`;

// ---- the form ----

function makeChoice(group, value, text, key) {
  const field = create("input", { type: "radio", name: group, value });
  return create("label", key ? { title: `Key ${key}` } : {}, field, text, ...(key ? [" ", create("kbd", {}, key)] : []));
}

function makeForm() {
  const labels = state.model.labels.map((label, i) => makeChoice("seen", label, label, String(i + 1)));
  $("seen").replaceChildren($("seen").firstElementChild, ...labels, makeChoice("seen", "", "Cannot tell", "C"));
  $("sure").replaceChildren($("sure").firstElementChild, ...SURE.map(([text, value]) => makeChoice("sure", value, text)));
}

function readForm() {
  const form = new FormData($("reading"));
  const seen = form.get("seen"), sure = form.get("sure");
  return { label: seen === "" ? null : seen ?? undefined, confidence: !seen || sure === null ? null : Number(sure), comment: $("remark").value };
}

function fillForm({ label, confidence, comment } = {}) {
  $("reading").reset();
  $("remark").value = comment ?? "";
  $("reading-reader").value = findName();
  $("reading-reader").readOnly = reader.name !== null;
  if (label !== undefined) for (const field of document.getElementsByName("seen")) field.checked = field.value === (label ?? "");
  if (typeof confidence === "number") for (const field of document.getElementsByName("sure")) field.checked = Number(field.value) === confidence;
  describeForm();
}

function describeForm() {
  const second = shown && phaseOf(shown) === "second";
  const { label, confidence, comment } = readForm();
  const first = shown?.readings?.at(-1);
  const same = second && label === first.label && (confidence ?? null) === first.confidence && comment === "";
  $("reading-title").textContent = second ? "Your reading with the model" : state.mode === "teaching" ? "Your answer" : "Your reading";
  $("commit").firstChild.textContent = `${second ? (same ? "Keep" : "Change") : state.mode === "teaching" ? "Answer" : "Commit"} `;
  $("reading-next").firstChild.textContent = second ? (same ? "Keep, next " : "Change, next ") : "Next ";
  $("sure").disabled = label === null;
}

// Shows the reading of an image; gives whether the model's answer may be seen.
export function fillReading(image) {
  if (shown !== image) { keepTime(); since = performance.now(); }
  if (state.model && !$("seen").querySelector("input")) makeForm(); // a reloaded page shows its list before the model is known
  const changed = shown !== image || $("reading").dataset.phase !== String(phaseOf(image));
  shown = image;
  const phase = phaseOf(image);
  $("reading").dataset.phase = String(phase);
  $("reading").hidden = !phase || !$("may-not").hidden;
  $("reading-reader-row").hidden = image.case !== undefined && !state.storing;
  $("first-why").textContent = phase === "second"
    ? "Your first reading stays as it is. This second one, with the model's answer, may differ."
    : image.case === undefined ? "Your first reading stays as you commit it. Then the model's answer is shown, and a second reading with it may differ." : "An answer stays as it is. Then the truth and the model's answer are shown.";
  if (changed && phase === "second") ignoreClicks();
  if (changed) {
    $("reading-said").textContent = "";
    fillForm(image.unread ?? (phase === "second" ? { ...image.readings.at(-1), comment: "" } : {}));
  }
  describeCompared(image);
  return !hides(image);
}

export function clearReading() {
  keepTime();
  shown = null;
  $("reading").hidden = $("compared").hidden = true;
}

function keepTime() {
  if (!shown?.withheld) return;
  shown.looked = (shown.looked ?? 0) + (performance.now() - since) / 1000;
  const { label, confidence, comment } = readForm();
  shown.unread = label !== undefined || comment ? { label, confidence, comment } : undefined; // typed, but not committed
}

function describeCompared(image) { // the reader beside the model, or beside the truth
  const { taught, readings = [] } = image;
  const [first] = readings, last = readings.findLast((each) => each.with_ai);
  const place = $("compared");
  place.hidden = hides(image) || (!taught && (state.mode !== "blind"));
  if (place.hidden) return;
  place.className = `note ${taught ? (taught.correct ? "right" : "wrong-answer") : ""}`;
  if (taught) {
    const said = taught.label ?? "cannot tell";
    place.replaceChildren(create("strong", {}, taught.correct ? `✓ Right: ${taught.truth}.` : `✗ It is ${taught.truth}.`), taught.correct ? "" : ` Your answer: ${said}.`, " Below is what the model says. ", makeNext());
  } else if (!first) {
    place.replaceChildren("Not read blind: the model's answer was shown before.");
  } else {
    const agrees = first.label === image.decision;
    const rows = [["You, before", words(first)], ["Model", makeChip(image)], ...(last ? [["You, with it", words(last)]] : [])];
    place.replaceChildren(create("dl", {}, ...rows.flatMap(([term, value]) => [create("dt", {}, term), create("dd", {}, value)])),
      create("p", {}, last ? (last.label === first.label ? "Kept." : "Changed.") : state.model && !state.model.labels.includes(image.decision) ? "The model names no class." : agrees ? "You and the model agree." : "You and the model differ."));
  }
}

function makeNext() {
  const button = create("button", { type: "button", id: "compared-next" }, "Next case ", create("kbd", {}, "S"));
  button.addEventListener("click", () => $("teaching-next").click());
  button.disabled = $("teaching-next").disabled;
  return button;
}

// The panel may have moved under the pointer: a click meant for what was there changes no reading.
function ignoreClicks() {
  $("reading").classList.add("settling");
  setTimeout(() => $("reading").classList.remove("settling"), 800);
}

// ---- committing ----

export async function commitReading() {
  const image = shown, phase = image && phaseOf(image);
  if (!phase || busy || $("reading").hidden) return false;
  const { label, confidence, comment } = readForm();
  document.getElementsByName("seen")[0].setCustomValidity(label === undefined ? "Choose what you see." : "");
  if (!$("reading").reportValidity()) return false;
  busy = true;
  $("reading-said").textContent = "…";
  if (reader.name === null) localStorage.setItem("reviewer", $("reading-reader").value);
  keepTime();
  since = performance.now();
  const body = { label, confidence, comment, reader: findName() };
  if (phase === "first") body.seconds = Math.round(10 * image.looked) / 10;
  try {
    if (image.case !== undefined) await teach(image, body);
    else if (image.id) await send(image, { ...body, with_ai: phase === "second" });
    else await readLocally(image, { ...body, with_ai: phase === "second" });
    const now = image === shown ? readForm() : image.unread; // what was typed meanwhile stays
    image.unread = now && now.comment !== comment ? { label, confidence, comment: now.comment } : undefined;
    $("reading-said").textContent = "";
    keep(image);
    announce("reviewed");
    if (image === state.current) announce("revealed");
    return true;
  } catch (problem) {
    const lost = problem instanceof Lost;
    if (image === shown) $("reading-said").textContent = `Not saved: ${lost ? "the service does not respond. Try again when it is back." : problem.message}`;
    if (lost) lose(() => {});
    return false;
  } finally {
    busy = false;
  }
}

async function send(image, body) {
  try {
    const answer = await call(`v1/predictions/${image.id}/readings`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const { reading, prediction } = await answer.json();
    image.readings = [...(image.readings ?? []), reading];
    if (hides(image)) reveal(image, prediction);
  } catch (problem) {
    if (!(problem instanceof Refused && problem.status === 409)) throw problem;
    await recognise(image); // it was read before, perhaps on another page
    if (hides(image)) reveal(image, await (await call(`v1/predictions/${image.id}`)).json());
  }
}

async function readLocally(image, reading) { // a simulated image: nothing is stored
  if (!reading.with_ai) {
    const { picture, ...prediction } = await predict(image.source, { invert: image.invert, any: image.any, heatmap: state.model.heatmaps, store: false });
    const heatmap = prediction.heatmap && { ...prediction.heatmap, png: toBlob(prediction.heatmap.png) };
    reveal(image, { ...prediction, heatmap });
  }
  image.readings = [...(image.readings ?? []), reading];
}

function reveal(image, { name: _, reviews, image_reviews: all, picture, ...prediction }) {
  Object.assign(image, prediction, { withheld: false, reviews: all?.length ? all : reviews ?? [] });
  loadEvidence(image).catch(() => {}); // the answer is there without it
}

async function loadEvidence(image) {
  if (image.heatmap || !state.model.heatmaps || image.fingerprint !== state.model.fingerprint || image.decision === "out_of_distribution") {
    image.source = null;
    return showEvidence(image);
  }
  if (!image.source && image.kept?.length) await recall(image); // its picture was not needed until now
  const kept = image.image_kept && !image.source;
  const file = kept ? new File([await (await call(`v1/predictions/${image.id}/image?original=true`)).blob()], image.name) : image.source;
  if (!file) return;
  const { heatmap } = await predict(file, { invert: image.invert ?? false, any: true, heatmap: true, store: false });
  if (heatmap) image.heatmap = { ...heatmap, png: toBlob(heatmap.png) };
  image.source = null;
  if (image.picture) image.kept = null; // all of it is kept anew
  keep(image);
  await showEvidence(image);
}

async function showEvidence(image) { // without moving the image
  if (image !== state.current || !image.heatmap?.png) return;
  const map = await createImageBitmap(image.heatmap.png);
  if (image !== state.current) return;
  viewer.map = map;
  viewer.draw();
  viewer.tell();
  announce("revealed");
}

// What this reader has read before is known, if the image comes again.
export async function recognise(image) {
  if (!image.sha256 || !image.id) return;
  const query = new URLSearchParams({ sha256: image.sha256, limit: 10, ...(state.bound ? {} : { reader: findName() }) });
  const { readings } = await (await call(`v1/readings?${query}`)).json();
  if (!readings.length) return;
  image.readings = readings.reverse();
  if (hides(image)) reveal(image, await (await call(`v1/predictions/${image.id}`)).json());
}

// ---- keys ----

export function chooseSeen(at) { // a class by its number, or "cannot tell"
  const fields = [...document.getElementsByName("seen")];
  const field = at === "c" ? fields.at(-1) : fields[at - 1];
  if (!field || (at !== "c" && field === fields.at(-1))) return false;
  field.checked = true;
  if (document.activeElement.matches("button, a, summary, input") && !document.activeElement.closest("tbody")) field.focus({ preventScroll: true }); // so that Enter commits
  describeForm();
  return true;
}

export function changeSure(by) {
  const fields = [...document.getElementsByName("sure")];
  const at = fields.findIndex((field) => field.checked);
  if ($("sure").disabled) return;
  fields[at < 0 ? (by > 0 ? 3 : 1) : Math.min(fields.length - 1, Math.max(0, at + by))].checked = true;
  describeForm();
}

for (const event of ["change", "input"]) {
  $("reading").addEventListener(event, () => {
    document.getElementsByName("seen")[0].setCustomValidity("");
    describeForm();
  });
}
$("reading").addEventListener("submit", (event) => {
  event.preventDefault();
  commitReading();
});

// When the mode changes, the answers of images that were not read are hidden or shown.
document.addEventListener("mode", async () => {
  if (state.mode !== "assist") return;
  for (const image of state.images.filter((each) => each.withheld)) {
    try {
      if (image.id) reveal(image, await (await call(`v1/predictions/${image.id}`)).json());
      else await readLocally(image, { with_ai: false, label: null });
      if (!image.id) image.readings = [];
      keep(image);
      if (image === state.current) announce("revealed");
    } catch { return; } // the mode can be changed again
  }
  announce("listed");
});
export const describeReading = (image) => (image.readings?.length ? name(image.readings[0].label) ?? "cannot tell" : "");
