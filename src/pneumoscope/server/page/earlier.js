// Earlier predictions, which the service has stored.

import { describe, takeReviews } from "./answers.js";
import { pick, select } from "./image.js";
import { keep } from "./kept.js";
import { recognise, withhold } from "./reading.js";
import { lose } from "./outage.js";
import { showFile } from "./pictures.js";
import { call, Lost } from "./service.js";
import { $, announce, create, makeChip, nextKey, round, showTime, state } from "./state.js";

const title = (prediction) => prediction.name || prediction.sha256.slice(0, 12);

export async function openEarlier() {
  if (!$("earlier").open) return;
  try {
    const { predictions } = await (await call("v1/predictions?limit=100")).json();
    $("no-earlier").hidden = predictions.length > 0;
    $("earlier-list").replaceChildren(...predictions.map(makeItem));
  } catch (problem) {
    if (problem instanceof Lost) lose(openEarlier);
    else $("earlier-list").replaceChildren(create("li", {}, problem.message));
  }
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
document.addEventListener("mode", openEarlier);
document.addEventListener("reviewed", openEarlier);
