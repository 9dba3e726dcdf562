// A study beside its image: thumbnails of its images and of the patient's others, and which of them is shown beside it.

import { keep } from "./kept.js";
import { compare, select } from "./image.js";
import { compared, endComparison, isComparing } from "./panes.js";
import { recallPictures } from "./pictures.js";
import { translateWarning } from "./prediction.js";
import { recall, remember } from "./preferences.js";
import { call, Lost } from "./service.js";
import { $, announce, create, nextKey, state } from "./state.js";
import { describeImage, hang, isLateral, isRelated, keyOf, newest } from "./studies.js";
import { drawSoon, forget } from "./thumbnails.js";

const PAGES = 3; // of a patient's earlier predictions
const stored = new Map(); // images by the patient, as the service has stored them
let shown = []; // images of the strip
let filled = null; // what it was made of
let own = false; // whether the comparison was opened here, and not by the reader
let chosen = null; // the image that the reader has put beside those of its patient
let declined = null; // the study whose second image the reader has closed
const narrow = matchMedia("(max-width: 46rem)");

// ---- which images belong beside the current one ----

function listStudy(image) { // as the service has it, too: its lateral may have come another day
  const there = (stored.get(image.patient)?.images ?? []).filter((other) => keyOf(other) === keyOf(image) && !isListed(other));
  return [...state.images.filter((other) => keyOf(other) === keyOf(image)), ...there].sort(hang);
}
const isListed = ({ sha256 }) => state.images.some((image) => image.sha256 === sha256);

function listOthers(image) { // images of the same patient in other studies, newest first
  if (!image.patient) return [];
  const isOther = (other) => isRelated(image, other) && keyOf(other) !== keyOf(image);
  const there = (stored.get(image.patient)?.images ?? []).filter((other) => isOther(other) && !isListed(other));
  return [...state.images.filter(isOther), ...there].sort((a, b) => newest(a, b) || hang(a, b));
}

const hasPicture = (image) => Boolean(image.picture || image.kept?.length || image.image_kept) && image.recalled !== true;
const isEarlier = (other, image) => Boolean(other.date && image.date) && other.date < image.date;

// PA beside lateral, else the latest earlier image of the same kind, else another image of the study.
function findPartner(image) {
  const study = listStudy(image).filter((other) => other !== image && hasPicture(other));
  const same = (other) => isLateral(other) === isLateral(image);
  const prior = listOthers(image).find((other) => same(other) && isEarlier(other, image) && hasPicture(other));
  return study.find((other) => other.view && image.view && !same(other)) ?? prior ?? study[0] ?? null;
}

// ---- what the service has stored of a patient ----

const lookUpSoon = (image) => setTimeout(() => { if (state.current === image) lookUp(image); }, 150); // not for those passed by

async function lookUp({ patient }) {
  if (!patient || stored.has(patient)) return;
  const found = { images: [], without: 0, more: false };
  stored.clear(); // of one patient at a time
  stored.set(patient, found);
  const seen = new Set();
  try {
    let next = "";
    for (let page = 0; page < PAGES && next !== null; page++) {
      const answer = await (await call(`v1/predictions?${new URLSearchParams({ patient, limit: 100, cursor: next })}`)).json();
      next = answer.next;
      for (const prediction of answer.predictions) {
        if (seen.has(prediction.sha256)) continue;
        seen.add(prediction.sha256);
        const { reviews, image_reviews, ...rest } = prediction;
        if (prediction.image_kept) found.images.push({ ...rest, key: nextKey(), state: "done", name: prediction.name || prediction.sha256.slice(0, 12), reviews: image_reviews?.length ? image_reviews : reviews });
        else if (!isListed(prediction)) found.without++;
      }
    }
    found.more = next !== null;
  } catch (problem) {
    stored.delete(patient);
    if (!(problem instanceof Lost)) found.problem = problem.message;
  }
  if (state.current?.patient === patient) update();
}

// ---- the strip ----

function makeThumbnail(image) {
  const words = describeImage(image);
  const canvas = create("canvas", { width: 54, height: 72, "aria-hidden": "true" });
  const show = create("button", { type: "button", class: "thumb", title: `${image.name}\n${[words.join(" · "), ...image.warnings.map(translateWarning)].join("\n")}` },
    canvas, ...words.slice(1).map((date) => create("span", {}, date)));
  canvas.after(create("span", {}, words[0], ...(image.warnings.length ? [create("span", { class: "warned", role: "img", "aria-label": `Warning: ${image.warnings.map(translateWarning).join(" ")}` }, "⚠")] : [])));
  const beside = create("button", { type: "button", class: "beside", "aria-pressed": "false", title: `Shows ${image.name} on the right`, "aria-label": `Beside: ${words.join(", ")}` }, "Beside");
  show.addEventListener("click", () => { addToList(image); select(image); });
  beside.addEventListener("click", () => (compared() === image ? close() : choose(image)));
  const item = create("li", {}, show, beside);
  Object.assign(item, { image, canvas });
  return item;
}

function addToList(image) { // one that only the service had
  if (state.images.includes(image) || image.case !== undefined) return; // teaching cases belong to no list
  state.images.push(image);
  keep(image);
  announce("listed");
}

const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    drawSoon(target.image, target.canvas);
  }
}, { root: $("strip-list") });

function update() {
  const { current } = state;
  const done = current?.state === "done" && keyOf(current) !== null;
  const images = done ? [...listStudy(current), ...listOthers(current)] : [];
  const found = done ? stored.get(current.patient) : null;
  $("strip").hidden = images.length < 2;
  const look = images.map(({ key, warnings, name }) => [key, warnings, name].join()).join("\n");
  if (look !== filled) {
    filled = look;
    forget();
    watcher.disconnect();
    const focused = $("strip-list").contains(document.activeElement) && document.activeElement.closest("li").image;
    $("strip-list").replaceChildren(...images.map(makeThumbnail));
    for (const item of $("strip-list").children) {
      if (current && isEarlier(item.image, current)) item.classList.add("prior");
      watcher.observe(item);
      if (item.image === focused) item.querySelector("button").focus();
    }
  }
  shown = images;
  const left = [found?.without && `${found.without} more of this patient without a kept image.`, found?.more && "Only the latest 300 predictions were looked at."];
  $("strip-note").textContent = left.filter(Boolean).join(" ");
  mark();
  arrange();
}

function mark() {
  const second = compared();
  for (const item of $("strip-list").children) {
    const [show, beside] = item.querySelectorAll("button");
    const current = item.image === state.current;
    if (current) show.setAttribute("aria-current", "true");
    else show.removeAttribute("aria-current");
    beside.disabled = current || !hasPicture(item.image);
    beside.setAttribute("aria-pressed", String(item.image === second && !current));
  }
}

// ---- side by side ----

function arrange() { // as the switch says, unless the reader has kept some other image there
  const { current } = state;
  if (isComparing() && !own) return;
  const known = current?.state === "done" && keyOf(current) !== null;
  if (!known || !chosen || chosen === current || !isRelated(chosen, current)) chosen = null;
  const wanted = known && $("side-by-side").checked && !narrow.matches && keyOf(current) !== declined;
  const partner = chosen ?? (wanted ? findPartner(current) : null);
  if (partner && partner !== compared()) put(partner);
  else if (!partner && own) endComparison();
}

function put(image) {
  own = true;
  const { current } = state;
  recallPictures(image, () => { if (own && compared() === image && state.current === current) compare(current, image); });
  compare(current, image); // or says that it is being loaded
}

function choose(image) {
  chosen = image;
  if (isComparing() && !own) endComparison();
  arrange();
}

function close() {
  endComparison();
  decline();
}

function decline() {
  declined = state.current && keyOf(state.current);
  chosen = null;
}

function turn(by, second) { // the wheel goes through the images of the strip
  const place = second ? compared() : state.current;
  const others = shown.filter((image) => image === place || !second || (image !== state.current && hasPicture(image)));
  const next = others[others.indexOf(place) + by];
  if (!next) return;
  if (second) return choose(next);
  addToList(next);
  select(next);
}

let due = null;
const updateSoon = () => { due ??= setTimeout(() => { due = null; update(); }, 300); }; // many images may be answered at once

function show() {
  const { current } = state;
  if (current?.state === "done") {
    if (keyOf(current) !== declined) declined = null;
    lookUpSoon(current);
  }
  update();
}

document.addEventListener("selected", show);
document.addEventListener("listed", update);
document.addEventListener("answered", updateSoon);
document.addEventListener("compared", () => {
  if (!isComparing()) own = false;
  mark();
});
document.addEventListener("turned", ({ detail }) => turn(detail.by, detail.second));
document.addEventListener("closed", decline);
narrow.addEventListener("change", arrange);
$("side-by-side").checked = recall("sideBySide", false);
$("side-by-side").addEventListener("change", (event) => {
  remember("sideBySide", event.target.checked);
  declined = null;
  arrange();
});
show();
