// One image: its picture in the viewer, and what the model says of it.

import { clearReview, fillReview, keepDraft } from "./review.js";
import { $, announce, name, say, state } from "./state.js";
import { Viewer } from "./viewer.js";

const viewer = new Viewer($("image"));

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
    viewer.show(image.picture, image.heatmap?.png).catch(() => {
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
  const { image, level, window: width, scale } = viewer;
  const { current } = state;
  $("level").value = 100 * level;
  $("window").value = 100 * width;
  $("invert").setAttribute("aria-pressed", String(viewer.inverted));
  $("evidence-shown").setAttribute("aria-pressed", String(viewer.evidence));
  if (!image || current?.state !== "done") {
    $("caption").textContent = "";
    $("image").setAttribute("aria-label", $("nothing").hidden ? "No image" : $("nothing").textContent);
    return;
  }
  const zoom = Math.round((100 * scale * image.width) / current.width / (window.devicePixelRatio || 1));
  $("caption").textContent = `${current.name} · level ${Math.round(100 * level)}% · window ${Math.round(100 * width)}% · zoom ${zoom}%${viewer.inverted ? " · inverted" : ""}${viewer.map && !viewer.evidence ? " · heatmap off" : ""}`;
  $("image").setAttribute("aria-label", `Image ${current.name}. ${$("explanation").textContent}${viewer.inverted ? " Shown inverted." : ""}`);
}

function change(values) { // of the heatmap over the image
  Object.assign(viewer, values);
  viewer.draw();
  describeViewer();
}

viewer.changed = describeViewer;
$("zoom-in").addEventListener("click", () => viewer.zoom(1.25));
$("zoom-out").addEventListener("click", () => viewer.zoom(0.8));
$("fit").addEventListener("click", () => viewer.fit());
$("reset").addEventListener("click", () => { viewer.reset(); viewer.fit(); });
$("invert").addEventListener("click", () => viewer.set({ inverted: !viewer.inverted }));
$("drag").addEventListener("click", () => {
  viewer.dragWindows = !viewer.dragWindows;
  $("drag").setAttribute("aria-pressed", String(viewer.dragWindows));
  $("drag").textContent = viewer.dragWindows ? "Drag: window" : "Drag: move";
});
$("level").addEventListener("input", (event) => viewer.set({ level: event.target.value / 100 }));
$("window").addEventListener("input", (event) => viewer.set({ window: event.target.value / 100 }));
$("opacity").addEventListener("input", (event) => change({ opacity: event.target.value / 100, evidence: true }));
$("evidence-shown").addEventListener("click", () => change({ evidence: !viewer.evidence }));
