// Keys for reading image after image. They can be turned off, for those whose speech or other devices send letters.

import { openHelp } from "./help.js";
import { answer, chooseLabel, hasChanges, isSettled, saveReview, undo } from "./review.js";
import { select, showStage } from "./image.js";
import { useKey } from "./reading_keys.js";
import { $, state } from "./state.js";
import { focusRow, goOn, step, stepStudy } from "./worklist.js";

const WRITING = "textarea, select, dialog *, input:not([type=radio], [type=range], [type=checkbox], [type=file])";
const OWN_ARROWS = `${WRITING}, input, .stage *, .short`;

let left = null; // the image whose review was just saved, and the one shown since

function saveAndNext() {
  const image = state.current;
  const saving = isSettled() ? null : saveReview();
  if (saving === false) return;
  goOn();
  showStage();
  left = saving && { image, saving, to: state.current };
}

async function undoLatest() { // right after saving and going on: the review of the image before
  const before = left;
  left = null;
  if (!before || before.image === before.to || state.current !== before.to || hasChanges()) return undo();
  const inList = $("worklist").contains(document.activeElement);
  await before.saving;
  select(before.image);
  if (inList) focusRow();
  undo();
}

function focusField(field) {
  if (field.closest("[hidden]")) return;
  field.focus();
  field.scrollIntoView({ block: "nearest" });
}

const LETTERS = {
  n: goOn, p: () => step(-1), a: () => answer("agree"), d: () => answer("disagree"), c: () => answer("cannot_tell"),
  s: saveAndNext, u: undoLatest, e: () => focusField($("comment")), "/": () => focusField($("search")), "?": openHelp,
};
const MOVES = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 };
const STUDIES = { ArrowDown: 1, ArrowUp: -1 }; // with Shift

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  if (useKey(event, target.matches(WRITING))) return;
  const inReview = $("review").contains(target);
  if ((event.ctrlKey || event.metaKey) && key === "Enter" && inReview) {
    event.preventDefault();
    return saveAndNext();
  }
  if (event.ctrlKey || event.metaKey) return;
  if (key === "Escape" && target.matches("textarea, select, input") && !target.closest("dialog")) {
    if (!focusRow()) target.blur();
    return;
  }
  const walks = key in STUDIES && event.shiftKey && !target.matches(`${WRITING}, input`);
  if (walks) { // also from the image, whose own arrows need no Shift
    event.preventDefault();
    event.stopPropagation();
    return stepStudy(STUDIES[key]);
  }
  const inRows = $("worklist").contains(target);
  if (key in MOVES && !target.matches(OWN_ARROWS) && (inRows || target === document.body || Math.abs(MOVES[key]) === 1)) {
    event.preventDefault();
    return step(MOVES[key]);
  }
  if (!$("letters").checked || target.matches(WRITING)) return;
  const act = LETTERS[key.toLowerCase()];
  if (act) act();
  if (act || (/^[1-9]$/.test(key) && chooseLabel(Number(key)))) event.preventDefault();
}, true); // before the keys of the image, which has other uses for figures

$("letters").checked = localStorage.getItem("letters") !== "off";
$("letters").addEventListener("change", () => localStorage.setItem("letters", $("letters").checked ? "on" : "off"));
$("save-next").addEventListener("click", saveAndNext);
