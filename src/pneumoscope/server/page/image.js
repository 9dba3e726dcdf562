// One image: its picture in the viewer, and what the model says of it.

import { PLANES, describeTurn } from "./overlays.js";
import { active, all, endComparison, isComparing, keepBeside, viewer, watch } from "./panes.js";
import { remember } from "./preferences.js";
import { clearReview, fillReview, keepDraft } from "./review.js";
import { $, announce, name, say, state } from "./state.js";
import { attachToolbar, describeTools } from "./toolbar.js";

export function pick(image) {
  select(image);
  if (matchMedia("(max-width: 46rem)").matches) document.querySelector(".stage").scrollIntoView({ block: "start" });
}

export function select(image) {
  keepDraft(image);
  state.current = image;
  announce("selected");
  const done = image.state === "done";
  $("prediction").hidden = !done;
  $("no-prediction").hidden = $("nothing").hidden = done;
  if (!done) {
    const words = image.state === "error" ? `${image.name} has no prediction. ${image.error}` : `${image.name} is waiting.`;
    $("no-prediction").textContent = $("nothing").textContent = words;
    $("image").setAttribute("aria-label", words);
    viewer.clear();
    return;
  }
  if (image.picture) {
    viewer.show(image, image.picture, image.heatmap?.png).catch(() => {
      if (image === state.current) say($("nothing"), `${image.name} cannot be displayed by this browser.`);
    });
  } else {
    say($("nothing"), "Images of earlier predictions are not stored. To see this one, add the file again.");
    viewer.clear();
  }
  describe(image);
  fillReview(image);
}

// Shows an image, and another beside it until `endComparison` of panes.js; the prediction is that of the first.
export function compare(image, other) {
  if (state.current !== image) select(image);
  keepBeside(other);
}

export function clearImage() {
  endComparison();
  state.current = null;
  $("prediction").hidden = true;
  $("no-prediction").hidden = $("nothing").hidden = false;
  $("no-prediction").textContent = "Select an image to see its prediction.";
  $("nothing").textContent = "No images yet. Drop files here, or try simulated images.";
  clearReview();
  viewer.clear();
}

function describe(image) {
  const words = name(image.decision);
  $("decision").textContent = words[0].toUpperCase() + words.slice(1);
  $("explanation").textContent = image.explanation ?? `Predicted on ${new Date(image.created_at).toLocaleString()} by the model ${image.model}.`;
  describeProbability(image);
  const facts = [["Image", image.name], ["Size", `${image.width} × ${image.height}, ${image.format}`]];
  if (image.prediction_set.length) facts.push(["Prediction set", image.prediction_set.join(" or ")]);
  if (image.ood_score !== null) facts.push(["OOD score", `${image.ood_score.toFixed(2)} (above 1: out of distribution)`]);
  if (image.group) facts.push(["Group", image.group]);
  for (const warning of image.warnings) facts.push(["Warning", warning]);
  $("facts").replaceChildren(...facts.flatMap(([term, value]) => [
    Object.assign(document.createElement("dt"), { textContent: term }), Object.assign(document.createElement("dd"), { textContent: value })]));
  describeEvidence(image);
}

function describeEvidence({ heatmap }) {
  $("evidence").hidden = !heatmap;
  if (!heatmap) return;
  const { label, limit, logit, bias, cell_width: width, cell_height: height } = heatmap;
  $("against").textContent = signed(-limit, 1);
  $("for").textContent = signed(limit, 1);
  const spacing = viewer.picture?.facts.spacing;
  const mm = spacing ? ` (${Math.round(width * spacing.columns)} × ${Math.round(height * spacing.rows)} mm${PLANES[spacing.plane]})` : "";
  $("legend-label").textContent = `Yellow supports ${label}, blue speaks against it. In logits, on one scale for all images. Coarse: one value for ${Math.round(width)} × ${Math.round(height)} pixels${mm}; not the outline of a finding. Mean ${signed(logit - bias)} and bias ${signed(bias)} make the logit ${signed(logit)}.`;
}

function describeProbability(image) {
  const { model } = state;
  $("chance").hidden = image.probability === null;
  if (image.probability === null) return;
  $("chance-label").textContent = `Probability of ${model.positive ?? image.predicted_label}`;
  $("probability").textContent = image.probability.toFixed(3);
  $("fill").style.width = `${100 * image.probability}%`;
  const comparable = model.threshold !== null && image.fingerprint === model.fingerprint;
  $("threshold").hidden = !comparable;
  $("threshold").style.left = `${100 * (model.threshold ?? 0)}%`;
  $("threshold-label").textContent = comparable ? `Threshold: ${model.threshold.toFixed(3)}. At or above: ${model.positive}.` : "";
}

const signed = (value, digits = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

// ---- how the image is shown ----

function describeViewer() {
  const { current } = state;
  describeTools(active());
  for (const id of ["heat", "evidence-shown"]) $(id).setAttribute("aria-pressed", String(viewer.evidence));
  $("opacity").value = 100 * viewer.opacity;
  if (current?.state === "done") describeEvidence(current);
  const turned = [viewer.inverted && "inverted", describeTurn(viewer)].filter(Boolean).join(", ");
  if (viewer.picture && current?.state === "done") $("image").setAttribute("aria-label", `Image ${current.name}.${turned ? ` Shown ${turned}.` : ""}`);
  else $("image").setAttribute("aria-label", $("nothing").hidden ? "No image" : $("nothing").textContent);
}

function changeEvidence(values) {
  if (values.opacity !== undefined) remember("opacity", values.opacity);
  for (const pane of all()) {
    Object.assign(pane, values);
    pane.draw();
    pane.tell();
  }
  describeViewer();
}

watch(describeViewer);
attachToolbar(active, all);
$("opacity").addEventListener("input", (event) => changeEvidence({ opacity: event.target.value / 100, evidence: true }));
for (const id of ["heat", "evidence-shown"]) $(id).addEventListener("click", () => changeEvidence({ evidence: !viewer.evidence }));
$("compare").addEventListener("click", () => {
  if (isComparing()) endComparison();
  else if (viewer.picture) keepBeside(state.current);
});
describeViewer();
