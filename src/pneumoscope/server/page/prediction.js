// What the model says of an image.

import { describeEarlier, showHistory } from "./answers.js";
import { $, create, isLabel, kindOf, name, round, showTime, state } from "./state.js";
import { makeTerm } from "./terms.js";

export function describePrediction(image) {
  const words = name(image.decision);
  const shown = isLabel(image.decision) ? words : words[0].toUpperCase() + words.slice(1);
  $("decision").textContent = shown;
  $("decision").className = `decision chip ${kindOf(image)}`;
  $("explanation").textContent = image.explanation ?? `Predicted on ${showTime(image.created_at)} by the model ${image.model}.`;
  describeProbability(image);
  describeWarnings(image);
  describeFacts(image);
  describeReviewed(image);
  const summary = [`${image.name}: ${shown}`, image.probability === null ? "" : `probability ${round(image.probability)}`, ...image.warnings.map(translateWarning), describeEarlier(image)];
  $("announced").textContent = summary.filter(Boolean).join(". ");
}

export function describeReviewed(image) {
  const earlier = describeEarlier(image);
  $("earlier-review").hidden = !earlier;
  $("earlier-review").textContent = earlier;
  showHistory(image);
}

function describeWarnings({ warnings }) {
  $("warnings").hidden = !warnings.length;
  $("warnings").replaceChildren(...warnings.map((warning) => create("li", {}, translateWarning(warning[0].toUpperCase() + warning.slice(1)))));
}

function describeFacts(image) {
  const facts = [["Image", image.name], ["Size", `${image.width} × ${image.height}, ${image.format}`]];
  if (image.prediction_set.length) facts.push([makeTerm("Prediction set", "set"), image.prediction_set.join(" or ")]);
  if (image.ood_score !== null) facts.push([makeTerm("OOD score", "ood"), `${image.ood_score.toFixed(2)} (above 1: out of distribution)`]);
  if (image.group) facts.push([makeTerm("Group", "group"), image.group]);
  if (image.model) facts.push(["Model", image.model]);
  $("facts").replaceChildren(...facts.flatMap(([term, value]) => [create("dt", {}, term), create("dd", {}, value)]));
}

function describeProbability(image) {
  const { model } = state;
  $("chance").hidden = $("probability").hidden = image.probability === null;
  if (image.probability === null) return;
  $("chance-label").textContent = `Probability of ${model.positive ?? image.predicted_label}`;
  $("probability").textContent = round(image.probability);
  $("fill").style.width = `${100 * image.probability}%`;
  const [low, high] = image.uncertain_range ?? [0, 0];
  $("band").hidden = low === high;
  Object.assign($("band").style, { left: `${100 * low}%`, width: `${100 * (high - low)}%` });
  const comparable = model.threshold !== null && image.fingerprint === model.fingerprint;
  $("threshold").hidden = !comparable;
  $("threshold").style.left = `${100 * (model.threshold ?? 0)}%`;
  $("threshold-label").replaceChildren(...(comparable ? [makeTerm("Threshold", "threshold"), `: ${model.threshold.toFixed(3)}. ${low === high ? `At or above: ${model.positive}.` : "Striped: uncertain."}`] : []));
}

// ---- an image without a prediction ----

// What the service's words mean on this page, where nobody sets parameters.
export function translate(detail) {
  const plain = detail.replace(/\s*[^.]*\bany_modality\b[^.]*\./gi, "").replace(/\s*Pass `[^`]*`[^.]*\./g, "");
  return plain.replace(/`([^`]*)`/g, "$1").trim();
}
export const translateWarning = (warning) => warning.replace("read it with `invert=True`", "add it again with the option “Inverted images (air is white)”");
export const isOtherModality = (detail) => /\bany_modality\b/i.test(detail);

export function describeFailure(image) {
  const words = image.state === "error" ? `${image.name} has no prediction. ${image.error}` : `${image.name} is waiting.`;
  $("no-prediction").textContent = words;
  const similar = state.images.filter((other) => other.otherModality && other.file !== null).length;
  $("retry").hidden = !(image.state === "error" && image.otherModality);
  $("retry-all").hidden = similar < 2;
  $("retry-all").textContent = `Read all ${similar} such files`;
  return words;
}
