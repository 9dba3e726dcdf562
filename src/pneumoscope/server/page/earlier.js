// Earlier predictions, which the service has stored.

import { describe, takeReviews } from "./answers.js";
import { pick, select } from "./image.js";
import { keep } from "./kept.js";
import { recognise, withhold } from "./reading.js";
import { lose } from "./outage.js";
import { showFile } from "./pictures.js";
import { findName } from "./reader.js";
import { call, Lost } from "./service.js";
import { $, announce, create, makeChip, nextKey, round, showTime, state } from "./state.js";

const title = (prediction) => prediction.name || prediction.sha256.slice(0, 12);

const AT_ONCE = 100;
const TURNS = 5; // pages at most, to list as many as before
const PAGES = 10; // that are asked for until one has a prediction
let next = null; // where what follows those in the list begins; null if nothing does

async function fetchPage(cursor, limit) {
  const which = $("earlier-which").value;
  const reader = which.includes("second") ? `&reader=${encodeURIComponent(findName())}` : "";
  let predictions = [];
  for (let turn = 0; turn < PAGES && predictions.length === 0 && cursor !== null; turn++) { // a page may be empty before the last
    const page = await (await call(`v1/predictions?${new URLSearchParams({ limit, cursor })}${which}${reader}`)).json();
    predictions = page.predictions;
    cursor = page.next;
  }
  next = cursor;
  $("more-earlier").hidden = next === null;
  return predictions.map(makeItem);
}

export async function openEarlier() { // the latest, as many as were listed before
  if (!$("earlier").open) return;
  try {
    const before = $("earlier-list").children.length;
    const items = await fetchPage("", Math.min(500, Math.max(AT_ONCE, before)));
    for (let turn = 0; turn < TURNS && next !== null && items.length < before; turn++) { // a page may be short
      items.push(...await fetchPage(next, AT_ONCE));
    }
    $("no-earlier").hidden = items.length > 0 || next !== null;
    $("earlier-list").replaceChildren(...items);
  } catch (problem) {
    if (problem instanceof Lost) lose(openEarlier);
    else $("earlier-list").replaceChildren(create("li", {}, problem.message));
  }
}

async function openMore() {
  $("more-earlier").disabled = true;
  try {
    const items = await fetchPage(next, AT_ONCE);
    $("earlier-list").append(...items);
    if (next === null) items[0]?.querySelector("button").focus(); // "More" is gone
  } catch (problem) {
    if (problem instanceof Lost) lose(() => {});
    else $("earlier-list").append(create("li", {}, problem.message));
  }
  $("more-earlier").disabled = false;
}

function makeItem(prediction) {
  const button = create("button", { type: "button", title: title(prediction) }, title(prediction));
  button.addEventListener("click", () => reopen(prediction));
  const blind = state.mode === "blind"; // shows no answers
  const probability = blind || prediction.probability === null ? "" : round(prediction.probability);
  const first = create("div", { class: "line" }, button, create("span", { class: "number" }, probability), blind ? "" : makeChip({ ...prediction, state: "done" }));
  const reviews = takeReviews(prediction).map((review) => `${describe(review)}${review.reviewer ? ` (${review.reviewer})` : ""}`).join("; ");
  return create("li", {}, first, create("p", { class: "quiet" }, `${showTime(prediction.created_at)}${blind ? "" : ` · ${reviews || "not reviewed"}`}`));
}

async function reopen({ reviews, image_reviews, ...prediction }) {
  let image = state.images.find((other) => other.id === prediction.id);
  if (!image) {
    image = { ...prediction, key: nextKey(), state: "done", name: title(prediction), reviews: takeReviews({ reviews, image_reviews }) };
    if (state.mode === "blind") {
      withhold(image);
      await recognise(image).catch(() => {});
    }
    state.images.push(image);
    keep(image);
    announce("listed");
  }
  pick(image);
}

// The file of a prediction whose image is not kept can be chosen again.
$("again").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  const image = state.current;
  if (!file || !image) return;
  $("again-why").textContent = "…";
  try {
    await showFile(image, file);
    if (image === state.current) select(image);
  } catch (problem) {
    $("again-why").textContent = problem.message;
  }
});
document.addEventListener("selected", () => { $("again-why").textContent = ""; });

$("earlier").addEventListener("toggle", openEarlier);
$("more-earlier").addEventListener("click", openMore);
$("earlier-which").addEventListener("change", openEarlier);
document.addEventListener("mode", openEarlier);
document.addEventListener("reviewed", openEarlier);
