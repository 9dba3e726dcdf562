// Two models on the same images.

import { make } from "./elements.js";
import { interval, percent } from "./trends.js";

const signed = (value) => `${value > 0 ? "+" : ""}${value.toFixed(2)}`;
const number = (value) => (value === null ? "–" : value > 0.999 ? ">0.999" : value.toFixed(3));
const words = (decision) => decision.replaceAll("_", " ");

function tell(found) {
  const share = found.canary ? `It answers for ${percent(found.canary)} of the images (${found.answered_by_second} so far); for the others its predictions are kept and not shown.` : "Its predictions are kept and not shown.";
  if (!found.images) return [share, "No image has been seen by both models yet."];
  const lines = [
    share,
    `${found.images} images were seen by both models. The decisions are the same for ${percent(found.same_decision.value)} (${interval(found.same_decision)}), the predicted labels for ${percent(found.same_label.value)} (${interval(found.same_label)}).`,
  ];
  if (found.difference_median !== null) lines.push(`Probability of the positive class, second minus first: median ${signed(found.difference_median)}, from ${signed(found.difference_p05)} to ${signed(found.difference_p95)} for nine images in ten; ${found.mean_absolute_difference.toFixed(3)} on average without its sign.`);
  const { images, first_matches: first, second_matches: second } = found.reviewed;
  if (images) lines.push(`Of the ${found.discordant} images with different decisions, reviewers named a class for ${images}: the first model decided for it ${first} times, the second ${second} times. Reviewers saw the decision of the model that answered, which favours it.`);
  return lines;
}

export function showComparison(section, found) {
  section.hidden = !found;
  if (!found) return;
  section.querySelector(".words").replaceChildren(make("p", { class: "quiet" }, `Second model: ${found.name}, ${found.fingerprint.slice(0, 12)}`), ...tell(found).map((line) => make("p", {}, line)));
  const details = section.querySelector("details");
  details.hidden = !found.latest.length;
  details.querySelector("summary").textContent = `Images with different decisions${found.discordant > found.latest.length ? ` (the latest ${found.latest.length} of ${found.discordant})` : ""}`;
  details.querySelector("tbody").replaceChildren(...found.latest.map((image) => {
    const row = make("tr");
    row.append(
      make("th", { scope: "row", class: "stacked" }, image.prediction_id),
      make("td", { class: "number", "data-label": "Time (UTC)" }, image.created_at.slice(0, 16).replace("T", " ")),
      make("td", { class: "number", "data-label": "First" }, `${words(image.first)} ${number(image.first_probability)}`),
      make("td", { class: "number", "data-label": "Second" }, `${words(image.second)} ${number(image.second_probability)}`),
      make("td", { class: "number", "data-label": "Reviewer" }, image.label ?? "–"),
    );
    return row;
  }));
}
