// One image: its picture in the viewer, and what the model says of it.

import { recallPictures } from "./pictures.js";
import { describeFailure, describePrediction } from "./prediction.js";
import { clearReview, fillReview, keepDraft } from "./review.js";
import { $, announce, say, state } from "./state.js";
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
    viewer.show(image.picture, image.heatmap?.png).catch(() => {
      if (image === state.current) say($("nothing"), `${image.name} cannot be displayed by this browser.`);
    });
  } else {
    say($("nothing"), "The image of this prediction is not kept. To see it, choose the file again.");
    viewer.clear();
  }
  $("absent").hidden = Boolean(image.picture) || image.recalled === "pending";
  describePrediction(image);
  fillReview(image);
}

export function clearImage() {
  state.current = null;
  $("prediction").hidden = true;
  $("failure").hidden = $("nothing").hidden = false;
  $("retry").hidden = true;
  $("no-prediction").textContent = "Select an image to see its prediction.";
  $("nothing").textContent = "No images yet. Drop files here, or try simulated images.";
  clearReview();
  viewer.clear();
}

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
