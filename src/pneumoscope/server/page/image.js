// One image: its picture in the viewer, and what the model says of it.

import { Gestures } from "./gestures.js";
import { describeTurn } from "./overlays.js";
import { recall, remember } from "./preferences.js";
import { clearReview, fillReview, keepDraft } from "./review.js";
import { $, announce, name, say, state } from "./state.js";
import { attachToolbar, describeTools, tools } from "./toolbar.js";
import { Viewer } from "./viewer.js";

const viewer = new Viewer($("screen"));
viewer.gestures = new Gestures(viewer, tools);
viewer.opacity = recall("opacity", 0.55);

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

export function clearImage() {
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
  $("evidence").hidden = !image.heatmap;
  if (image.heatmap) {
    const { label, limit, logit, bias } = image.heatmap;
    $("against").textContent = signed(-limit, 1);
    $("for").textContent = signed(limit, 1);
    $("legend-label").textContent = `Yellow supports ${label}; blue speaks against it. The scale is in logits. The mean of the map and the bias (${signed(bias)}) add up to the logit: ${signed(logit)}.`;
  }
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
  describeTools(viewer);
  for (const id of ["heat", "evidence-shown"]) $(id).setAttribute("aria-pressed", String(viewer.evidence));
  $("opacity").value = 100 * viewer.opacity;
  const shown = viewer.picture && current?.state === "done";
  const turned = [viewer.inverted && "inverted", describeTurn(viewer)].filter(Boolean).join(", ");
  if (shown) $("image").setAttribute("aria-label", `Image ${current.name}.${turned ? ` Shown ${turned}.` : ""}`);
  else $("image").setAttribute("aria-label", $("nothing").hidden ? "No image" : $("nothing").textContent);
}

function changeEvidence(values) {
  Object.assign(viewer, values);
  remember("opacity", viewer.opacity);
  viewer.draw();
  viewer.tell();
}

viewer.changed = describeViewer;
attachToolbar(() => viewer, () => [viewer]);
$("opacity").addEventListener("input", (event) => changeEvidence({ opacity: event.target.value / 100, evidence: true }));
for (const id of ["heat", "evidence-shown"]) $(id).addEventListener("click", () => changeEvidence({ evidence: !viewer.evidence }));
describeViewer();
