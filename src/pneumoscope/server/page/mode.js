// The mode of reading: assist shows the model's answer at once, blind after a reading, teaching has cases of known truth.

import { reader } from "./reader.js";
import { $, announce, state } from "./state.js";

const WORDS = {
  assist: "The model's answer is shown with the image.",
  blind: "You read first. The model's answer is shown when you have committed your reading.",
  teaching: "Images of known truth. You answer first, and learn the truth at once.",
};
const buttons = [...document.querySelectorAll("[data-mode]")].filter((button) => button.tagName === "BUTTON");

export function takeMode() { // that of the service if it prescribes one, else the one chosen before
  const { mode, bound } = reader;
  state.bound = bound;
  const known = mode ?? sessionStorage.getItem("mode");
  for (const button of buttons) button.hidden = mode !== null && button.dataset.mode !== mode;
  $("mode-fixed").hidden = !mode;
  if (bound) $("examples").hidden = true; // they are not stored, so nobody can read them first
  take(known in WORDS ? known : "assist");
}

function take(mode) {
  state.mode = mode;
  document.documentElement.dataset.mode = mode;
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  $("mode-words").textContent = WORDS[mode];
  $("filter").querySelector("[value=open]").textContent = mode === "blind" ? "not read" : "not reviewed";
  announce("mode");
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    if (state.mode === button.dataset.mode) return;
    sessionStorage.setItem("mode", button.dataset.mode);
    take(button.dataset.mode);
  });
}
