// The help: the keys of the chosen mode and of the image, the mouse, and the settings of both.

import { $, create, state } from "./state.js";

const MOVES = [["↑ ↓, or P N", "Go through the list"], ["Shift ↑ ↓", "Go through the studies"]];
const OTHERS = [["/", "Search"], ["Esc", "Go from a field back to the list"], ["?", "This help"]];
const READ = [["1 – 9", "The class that you see"], ["C", "Cannot tell"], ["J, K", "Less sure, more sure"], ["E", "Comment"]];
const READING = {
  assist: [...MOVES, ["A", "Agree"], ["D", "Disagree"], ["C", "Cannot tell"], ["1 – 9", "Choose the class, where “I see” asks for it"],
    ["E", "Comment"], ["S, or Ctrl Enter", "Save, and go to the next image"], ["U", "Undo"], ...OTHERS],
  blind: [...MOVES, ...READ, ["Enter", "Commit"], ["S", "Go to the next image; once the answer is shown, first store your second reading"], ...OTHERS],
  teaching: [["↑ ↓, or P N", "Go through the cases"], ...READ, ["Enter", "Answer"], ["S", "Next case"], ["?", "This help"]],
};
const IMAGE = [["[ ]", "Narrow or widen the window"], [", .", "Lower or raise the level"], ["Shift 1 – 9", "Choose a preset"], ["Arrows", "Move the image, while it has the focus"],
  ["Space", "Hold it and drag to move"], ["Esc", "End a measurement, or go back to the first tool"]];

const list = (keys) => keys.flatMap(([key, words]) => [create("dt", {}, create("kbd", {}, key)), create("dd", {}, words)]);
const tools = [...$("rail").querySelectorAll("button")].map((button) => [button.dataset.key, button.getAttribute("aria-label")]);
$("image-keys").replaceChildren(...list([...tools, ...IMAGE]));

export function openHelp() {
  if ($("help").open) return;
  $("reading-keys-title").textContent = `Keys in the mode ${document.querySelector(`.modes [data-mode=${state.mode}]`).textContent}`;
  $("reading-keys").replaceChildren(...list(READING[state.mode]));
  $("help").showModal();
}

$("help-open").addEventListener("click", openHelp);
$("help").addEventListener("click", (event) => { if (event.target === $("help")) $("help").close(); }); // beside it
