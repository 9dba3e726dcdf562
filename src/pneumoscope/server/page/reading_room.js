// The reading room: images are added here, and sent to the service a few at a time.

import { isOpen, takeReviews } from "./answers.js";
import { ask } from "./dialog.js";
import { openEarlier } from "./earlier.js";
import { clearImage, select } from "./image.js";
import { clearKept, isKept, keep, kept, recall, recallDraft, recallView, restore } from "./kept.js";
import "./keys.js";
import { lose, outage, recover } from "./outage.js";
import { isOtherModality, translate } from "./prediction.js";
import { takeMode } from "./mode.js";
import { recognise } from "./reading.js";
import { identify } from "./reader.js";
import { hasDrafts } from "./review.js";
import { call, Lost, onSignOut, predict, toBlob } from "./service.js";
import { $, announce, nextKey, say, skipKeys, state } from "./state.js";
import { keyOf } from "./studies.js";
import { listShown } from "./order.js";
import { listSoon, restoreView } from "./worklist.js";

const AT_ONCE = 4;
let sending = 0;
let opened = null; // the image that was shown because it was answered first
for (const event of ["pointerdown", "keydown", "wheel", "input"]) addEventListener(event, () => { opened = null; }, { capture: true, passive: true });

async function start() {
  await restored;
  let model;
  try {
    [model] = await (await call("v1/models")).json();
    await identify();
    recover();
  } catch (problem) {
    if (problem instanceof Lost) return lose(start);
    return say($("outage"), problem.message);
  }
  state.model = model;
  $("model").textContent = `Model ${model.name}: ${model.labels.join(" or ")}, trained on ${model.training_images.toLocaleString("en")} images`;
  $("population").textContent = model.intended_population ? `This model is meant for ${model.intended_population}.` : "It is not known which patients this model is meant for.";
  $("label").replaceChildren(new Option("choose", ""), ...model.labels.map((label, i) => new Option(`${i + 1} ${label}`, label)));
  for (const option of $("filter").options) {
    if (option.value === "positive") option.textContent = model.positive ?? "";
    if (option.value === "negative") option.textContent = model.labels.find((label) => label !== model.positive);
    option.hidden = !model.positive && ["positive", "negative"].includes(option.value);
  }
  $("scale").style.background = `linear-gradient(to right, ${model.colours.join(", ")}), linear-gradient(#666, #666)`;
  restoreView(recallView());
  takeMode();
  openEarlier();
  refreshReviews();
  work();
}

// ---- the worklist of before: after a reload, or a visit to another page ----

async function reopen() {
  const images = (await restore()).filter((image) => image.case === undefined);
  for (const image of images) {
    skipKeys(image.key);
    image.draft = recallDraft(image.key);
    if (image.state === "sent") image.state = "waiting";
    if (image.state === "waiting" && !image.kept?.length) Object.assign(image, { state: "error", error: "It was not sent before the page was left. Add the file again." });
  }
  state.images.unshift(...images);
  if (images.some((image) => image.simulated)) $("examples").disabled = true;
  $("kept").textContent = kept.on
    ? "This list stays in this browser, encrypted, until you clear it or close the tab."
    : "This browser does not keep the list: it is gone when you reload or leave the page.";
  listSoon();
}
const restored = reopen();

async function refreshReviews() { // others may have reviewed the same images since
  const before = state.images.filter((image) => image.id);
  if (!before.length) return;
  const { predictions } = await (await call("v1/predictions?limit=500")).json();
  const byId = new Map(predictions.map((prediction) => [prediction.id, prediction]));
  for (const image of before) if (byId.has(image.id)) image.reviews = takeReviews(byId.get(image.id));
  announce("reviewed");
}

let strip = null; // comes with the first image whose study is known: the first view does not need it
document.addEventListener("selected", () => {
  if (keyOf(state.current) !== null) strip ??= import("./strip.js").catch(() => { strip = null; }); // the next one asks again
});

// ---- adding images ----

function add(files, more = {}) {
  const images = [...files].filter((file) => !/^(\.|DICOMDIR$|Thumbs\.db$)/i.test(file.name)).map((file) => ({
    key: nextKey(), name: file.path ?? (file.webkitRelativePath || file.name), invert: $("inverted").checked, any: $("any").checked, ...more,
    ...(file.size ? { file, state: "waiting" } : { state: "error", error: "The file is empty." }),
  }));
  if (!images.length) return [];
  state.images.push(...images);
  images.forEach(keep);
  listSoon();
  if (state.model) work();
  else if (!outage.lost) start(); // asks again for a token whose dialog was dismissed
  return images;
}

function work() {
  while (state.model && !outage.lost && sending < AT_ONCE) {
    const next = state.images.find((image) => image.state === "waiting");
    if (!next) break;
    next.state = "sent";
    sending++;
    send(next).finally(() => { sending--; work(); });
  }
  if (!sending) openFirst();
  listSoon();
}

function openFirst() { // reading starts at the top of the list, unless the reader has begun elsewhere
  const first = opened && opened === state.current && listShown().find((image) => image.state === "done");
  opened = null;
  if (first && first !== state.current) select(first);
}

async function send(image) {
  let file = null;
  try {
    if (!image.file) await recall(image);
    file = image.file;
    const options = { invert: image.invert, any: image.any, heatmap: state.model.heatmaps && state.mode !== "blind", store: !image.simulated, blind: state.mode === "blind" };
    const { picture, heatmap, reviews, image_reviews, ...prediction } = await predict(file, options);
    Object.assign(image, prediction, { name: image.name, state: "done", file: null, kept: null, reviews: takeReviews({ reviews, image_reviews }) });
    Object.assign(image, { picture: toBlob(picture), heatmap: heatmap && { ...heatmap, png: toBlob(heatmap.png) } });
    if (image.withheld) {
      image.source = file; // for the evidence, once it is read
      await recognise(image);
      if (state.mode === "assist") announce("mode"); // it was changed meanwhile
    }
  } catch (problem) {
    if (problem instanceof Lost) {
      Object.assign(image, { state: "waiting", file: file ?? image.file });
      lose(work);
    } else fail(image, problem.message);
  }
  if (image.state !== "waiting") keep(image);
  announce("answered");
  if (image === state.current) select(image);
  else if (!state.current && state.mode !== "teaching" && image.state !== "waiting") {
    opened = image;
    select(image);
  }
}

function fail(image, detail) {
  const otherModality = isOtherModality(detail); // such a file is kept, because it can be read another way
  Object.assign(image, { state: "error", error: translate(detail), otherModality, kept: null, file: otherModality ? image.file : null });
}

function retry(images) {
  for (const image of images) {
    Object.assign(image, { state: "waiting", any: true, error: undefined, otherModality: false });
    keep(image);
  }
  if (state.current) select(state.current);
  work();
}

async function listEntries(items) { // the files of dropped folders
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((done, fail) => entry.file(done, fail));
      files.push(Object.assign(file, { path: entry.fullPath.replace(/^\//, "") })); // images of a study share their names
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) break;
      for (const each of some) await walk(each);
    }
  };
  for (const entry of items.map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await walk(entry);
  return files;
}

for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const plain = [...event.dataTransfer.files];
  const files = await listEntries([...event.dataTransfer.items].filter((item) => item.kind === "file"));
  add(files.length ? files : plain);
});
for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
document.addEventListener("paste", (event) => add(event.clipboardData.files));

$("examples").addEventListener("click", async () => {
  $("examples").disabled = true;
  try {
    for (const { number, label } of await (await call("v1/examples")).json()) {
      const picture = await (await call(`v1/examples/${number}`)).blob();
      add([new File([picture], `simulated-${number + 1}${state.mode === "blind" ? "" : `-${label.toLowerCase()}`}.png`, { type: "image/png" })], { simulated: true });
    }
  } catch (problem) {
    $("examples").disabled = false;
    if (problem instanceof Lost) lose(work);
    else $("progress").textContent = problem.message;
  }
});

$("retry").addEventListener("click", () => retry([state.current]));
$("retry-all").addEventListener("click", () => retry(state.images.filter((image) => image.otherModality)));

async function mayClear() {
  const drafts = hasDrafts();
  const open = state.images.filter((image) => image.state === "done" && isOpen(image)).length;
  if (!drafts && !open) return true;
  const words = [drafts && "Some reviews are not saved.", open && `${open} ${open === 1 ? "image is" : "images are"} not ${state.mode === "blind" ? "read" : "reviewed"}.`];
  return ask("Clear the list?", `${words.filter(Boolean).join(" ")} Stored predictions and reviews stay.`, "Clear the list");
}

$("clear").addEventListener("click", async () => {
  if (!(await mayClear())) return;
  state.images = [];
  $("examples").disabled = false;
  clearImage();
  clearKept();
  announce("listed");
});
onSignOut.push(clearKept);
document.addEventListener("signed-in", (event) => {
  event.preventDefault();
  if (!state.model) start();
});
addEventListener("beforeunload", (event) => {
  const drafts = hasDrafts();
  const lost = kept.on && !kept.full ? state.images.some((image) => image.file && !isKept(image)) : drafts || state.images.some((image) => image.file);
  if (lost) event.preventDefault();
});

start();
