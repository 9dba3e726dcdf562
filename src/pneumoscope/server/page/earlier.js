// Earlier predictions, which the service has stored.

import { pick } from "./image.js";
import { lose } from "./outage.js";
import { describeReviews } from "./review.js";
import { call, Lost } from "./service.js";
import { $, announce, makeCell, name, nextKey, state } from "./state.js";

const title = (prediction) => prediction.name || prediction.sha256.slice(0, 12);

export async function openEarlier() {
  if (!$("earlier").open) return;
  try {
    const { predictions } = await (await call("v1/predictions?limit=100")).json();
    $("earlier").querySelector("tbody").replaceChildren(...predictions.map((prediction) => {
      const row = document.createElement("tr");
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: title(prediction) });
      button.addEventListener("click", () => reopen(prediction));
      const when = new Date(prediction.created_at).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
      const decision = `${name(prediction.decision)} ${prediction.probability?.toFixed(3) ?? ""}`;
      row.append(makeCell(when), makeCell(button), makeCell(decision), makeCell(describeReviews(prediction.reviews)));
      return row;
    }));
  } catch (problem) {
    if (problem instanceof Lost) lose(openEarlier);
  }
}

function reopen({ reviews, ...prediction }) {
  let image = state.images.find((other) => other.id === prediction.id);
  if (!image) {
    image = { ...prediction, key: nextKey(), state: "done", name: title(prediction), review: reviews.at(-1) };
    state.images.push(image);
    announce("listed");
  }
  pick(image);
}

$("earlier").addEventListener("toggle", openEarlier);
document.addEventListener("reviewed", openEarlier);
