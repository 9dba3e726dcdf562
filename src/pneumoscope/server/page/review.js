// The review of an image. What is not saved yet waits with its image as a draft.

import { answerOf, describe, findReview, isReviewed } from "./answers.js";
import { keep, rememberDraft } from "./kept.js";
import { lose } from "./outage.js";
import { describeReviewed } from "./prediction.js";
import { findName, reader } from "./reader.js";
import { call, Lost } from "./service.js";
import { $, announce, isLabel, say, state } from "./state.js";

let filled = null; // the image whose review is in the form
const AGREE = { uncertain: "I agree: uncertain", out_of_distribution: "I agree: OOD" };
const EMPTY = { answer: undefined, comment: "", label: "" };

function readForm() {
  const answer = new FormData($("review")).get("answer");
  return { answer: answer ?? undefined, comment: $("comment").value, label: $("label").disabled ? "" : $("label").value };
}

function readSaved(image) {
  const review = findReview(image);
  return review && review.prediction_id === image.id ? { answer: answerOf(review), comment: review.comment, label: review.label ?? "" } : EMPTY;
}

const differs = (one, other) => one.answer !== other.answer || one.comment !== other.comment || Boolean(one.label && one.label !== other.label);

export function keepDraft(next = null) {
  if (!filled || filled === next) return;
  const [draft, saved] = [readForm(), readSaved(filled)];
  filled.draft = differs(draft, saved) ? draft : undefined;
  rememberDraft(filled.key, filled.draft);
}

export function hasDrafts() {
  keepDraft();
  return state.images.some((image) => image.draft);
}

export function clearReview() {
  filled = null;
}

export function fillReview(image) {
  $("review").hidden = state.mode !== "assist" || !image.id || !$("may-not").hidden;
  $("not-stored").hidden = Boolean(image.id) || image.case !== undefined;
  if (filled === image) return;
  filled = image;
  $("review").reset();
  $("reviewer").value = findName();
  $("agree-words").textContent = AGREE[image.decision] ?? "I agree";
  showSaved(image);
  const { answer, comment, label } = image.draft ?? readSaved(image);
  if (answer) document.querySelector(`[name=answer][value=${answer}]`).checked = true;
  $("comment").value = comment;
  askLabel(label);
}

function showSaved(image) {
  const review = findReview(image);
  const own = review && review.prediction_id === image.id;
  $("saved").textContent = own ? `Saved: ${describe(review)}.` : "";
  $("undo").hidden = !own || review.reviewer !== $("reviewer").value;
}

function askLabel(chosen = readForm().label) { // only where the class does not follow from answer and decision
  const { answer } = readForm();
  const decision = filled?.decision, labels = state.model?.labels ?? [];
  const isClass = labels.includes(decision);
  const needed = answer === "disagree" && !(isClass && labels.length === 2);
  const asked = needed || (answer === "agree" && !isLabel(decision));
  const other = labels.find((label) => label !== decision);
  $("label").value = asked ? chosen : isClass && ["agree", "disagree"].includes(answer) ? (answer === "agree" ? decision : other) : "";
  $("label").disabled = !asked;
  $("label").required = needed;
  if (labels.length) $("label").options[0].text = asked ? "choose" : "–";
  $("label-row").title = asked ? "Keys 1 to 9" : "";
}

// Gives whether the review can be sent; the form says what is missing.
function check() {
  const { answer, comment } = readForm();
  const nothing = !answer && !comment.trim();
  $("review").elements.answer[0].setCustomValidity(nothing ? "Choose an answer, or write a comment." : "");
  return $("review").reportValidity();
}

async function save(image, { answer, comment, label }) {
  const before = image === filled ? readForm() : null;
  const reviewer = $("reviewer").value;
  if (reader.name === null) localStorage.setItem("reviewer", reviewer);
  if (image === filled) $("saved").textContent = "…";
  image.saving = true;
  announce("reviewed");
  try {
    const body = JSON.stringify({ answer, label: label || null, comment, reviewer });
    const answered = await call(`v1/predictions/${image.id}/reviews`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const review = await answered.json();
    const now = image === filled ? readForm() : image.draft; // what was typed meanwhile stays a draft
    const draft = now && before && differs(now, before) ? now : undefined;
    Object.assign(image, { reviews: [...(image.reviews ?? []), review], draft, saving: false });
    rememberDraft(image.key, draft);
    keep(image);
    if (image === filled) {
      filled = null; // shows what is stored
      fillReview(image);
      if (answerOf(review) === "comment") $("saved").textContent = "Saved: comment only.";
      if (answerOf(review) === "withdrawn") $("saved").textContent = "Withdrawn.";
      if (draft) $("saved").textContent += " What you have typed since is not saved.";
      describeReviewed(image);
    }
  } catch (problem) {
    image.saving = false;
    if (answer !== "withdrawn" && image !== filled) {
      image.draft ??= { answer, comment, label };
      rememberDraft(image.key, image.draft);
    }
    const reason = problem instanceof Lost ? "the service does not respond. Try again when it is back." : problem.message;
    if (image === filled) $("saved").textContent = `Not saved: ${reason}`;
    else say($("outage"), `The review of ${image.name} is not saved: ${reason}`);
    if (problem instanceof Lost) lose(() => {});
  }
  announce("reviewed");
}

// Sends the review in the form, and gives a promise of its end; false if something is missing.
export function saveReview() {
  if (!filled?.id || $("review").hidden || filled.saving || !check()) return false;
  const { answer = "comment", comment, label } = readForm();
  return save(filled, { answer, comment, label });
}

export function hasChanges() {
  keepDraft();
  return Boolean(filled?.draft);
}

// Whether nothing is left to save: what is in the form is saved, or there is nothing to review.
export function isSettled() {
  keepDraft();
  if (!filled?.id || $("review").hidden) return true;
  const commented = readSaved(filled) === EMPTY && filled.reviews?.findLast((review) => review.prediction_id === filled.id)?.answer === "comment";
  return !filled.draft && (isReviewed(filled) || commented || filled.saving === true);
}

export function answer(value) {
  if (!filled?.id || $("review").hidden) return;
  const field = document.querySelector(`[name=answer][value=${value}]`);
  if (!field) return;
  field.checked = true;
  changed();
}

export function chooseLabel(number) {
  if ($("label").disabled || !$("label").options[number]) return false;
  $("label").selectedIndex = number;
  changed();
  return true;
}

export function undo() {
  if (filled && !$("undo").hidden) save(filled, { answer: "withdrawn", comment: "", label: "" });
}

function changed() {
  $("review").elements.answer[0].setCustomValidity("");
  askLabel();
  keepDraft();
}

for (const event of ["change", "input"]) $("review").addEventListener(event, changed);
$("undo").addEventListener("click", undo);
$("reviewer").addEventListener("input", () => { if (filled) showSaved(filled); });
$("review").addEventListener("submit", (event) => {
  event.preventDefault();
  saveReview();
});
