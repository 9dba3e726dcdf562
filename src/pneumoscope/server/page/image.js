// One image: its picture in the viewer, and what the model says of it.

import { PLANES, describeTurn } from "./overlays.js";
import { active, all, endComparison, isComparing, keepBeside, viewer, watch } from "./panes.js";
import { recallPictures } from "./pictures.js";
import { describeFailure, describePrediction } from "./prediction.js";
import { remember } from "./preferences.js";
import { clearReading, fillReading, hides } from "./reading.js";
import { clearReview, fillReview, keepDraft } from "./review.js";
import { $, announce, say, state } from "./state.js";
import { makeTerm } from "./terms.js";
import { attachToolbar, describeTools } from "./toolbar.js";

export function pick(image) {
  select(image);
  showStage();
}

export function showStage() { // on a phone, the image may be above or below what is in sight
  if (matchMedia("(max-width: 46rem)").matches) document.querySelector(".stage").scrollIntoView({ block: "start" });
}

export function select(image) {
  keepDraft(image);
  state.current = image;
  announce("selected");
  const done = image.state === "done";
  $("prediction").hidden = !done;
  $("failure").hidden = $("nothing").hidden = done;
  if (!done) {
    const words = describeFailure(image);
    $("nothing").textContent = words;
    $("image").setAttribute("aria-label", words);
    viewer.clear();
    return;
  }
  if (recallPictures(image, (found) => { if (found === state.current) select(found); })) {
    say($("nothing"), "Loading…");
    viewer.clear();
  } else if (image.picture) {
    viewer.show(image, image.picture, image.heatmap?.png).catch(() => {
      if (image === state.current) say($("nothing"), `${image.name} cannot be displayed by this browser.`);
    });
  } else {
    say($("nothing"), "The image of this prediction is not kept. To see it, choose the file again.");
    viewer.clear();
  }
  $("absent").hidden = Boolean(image.picture) || image.recalled === "pending";
  describe(image);
}

function describe(image) {
  const open = fillReading(image);
  for (const part of document.querySelectorAll("#prediction .answer, #prediction .details")) part.hidden = !open;
  if (open) describePrediction(image);
  else $("announced").textContent = `${image.name}: not read yet`;
  describeEvidence(image);
  fillReview(image);
}

document.addEventListener("revealed", () => { if (state.current?.state === "done") describe(state.current); });
document.addEventListener("open", ({ detail }) => (detail ? select(detail) : clearImage()));
document.addEventListener("taught", async ({ detail }) => { // the evidence, without moving the image
  if (detail !== state.current || !detail.heatmap) return;
  viewer.map = await createImageBitmap(detail.heatmap.png);
  viewer.draw();
  viewer.tell();
});
document.addEventListener("mode", () => { if (state.current?.state === "done") describe(state.current); });

// Shows an image, and another beside it until `endComparison` of panes.js; the prediction is that of the first.
export function compare(image, other) {
  if (state.current !== image) select(image);
  keepBeside(other);
}

export function clearImage() {
  endComparison();
  state.current = null;
  $("prediction").hidden = true;
  $("failure").hidden = $("nothing").hidden = false;
  $("retry").hidden = true;
  $("no-prediction").textContent = "Select an image to see its prediction.";
  $("nothing").textContent = "No images yet. Drop files here, or try simulated images.";
  clearReview();
  clearReading();
  viewer.clear();
}

function describeEvidence({ heatmap }) {
  $("evidence").hidden = !heatmap;
  if (!heatmap) return;
  const { label, limit, logit, bias, cell_width: width, cell_height: height } = heatmap;
  $("against").textContent = signed(-limit, 1);
  $("for").textContent = signed(limit, 1);
  const spacing = viewer.picture?.facts.spacing;
  const mm = spacing ? ` (${Math.round(width * spacing.columns)} × ${Math.round(height * spacing.rows)} mm${PLANES[spacing.plane]})` : "";
  $("legend-label").replaceChildren(`Yellow supports ${label}, blue speaks against it. In `, makeTerm("logits", "logit"),
    `, on one scale for all images. Coarse: one value for ${Math.round(width)} × ${Math.round(height)} pixels${mm}; not the outline of a finding. Mean ${signed(logit - bias)} and bias ${signed(bias)} make the logit ${signed(logit)}.`);
}

const signed = (value, digits = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

// ---- how the image is shown ----

function describeViewer() {
  const { current } = state;
  describeTools(active());
  for (const id of ["heat", "evidence-shown"]) $(id).setAttribute("aria-pressed", String(viewer.evidence));
  $("opacity").value = 100 * viewer.opacity;
  if (current?.state === "done" && !hides(current)) describeEvidence(current);
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
  if (isComparing()) {
    endComparison();
    announce("closed"); // by the reader
  } else if (viewer.picture) keepBeside(state.current);
});
describeViewer();
