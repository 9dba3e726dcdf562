// The review of an image. What is not saved yet waits with its image as a draft.

import { answerOf, describe, findReview, isReviewed } from "./answers.js";
import { keep, rememberDraft } from "./kept.js";
import { lose } from "./outage.js";
import { describeReviewed } from "./prediction.js";
import { findName, reader } from "./reader.js";
import { call, Lost } from "./service.js";
import { $, announce, isLabel, say, state } from "./state.js";

let filled = null; // the image whose review is in the form
const AGREE = { uncertain: "I agree: uncertain", out_of_distribution: "I agree: not like the training images" };
const EMPTY = { answer: undefined, comment: "", label: "" };

function readForm() {
  const answer = new FormData($("review")).get("answer");
  return { answer: answer ?? undefined, comment: $("comment").value, label: $("label").value };
}

function readSaved(image) {
  const review = findReview(image);
  return review && review.prediction_id === image.id ? { answer: answerOf(review), comment: review.comment, label: review.label ?? "" } : EMPTY;
}

export function keepDraft(next = null) {
  if (!filled || filled === next) return;
  const [draft, saved] = [readForm(), readSaved(filled)];
  const changed = draft.answer !== saved.answer || draft.comment !== saved.comment || (draft.label && draft.label !== saved.label);
  filled.draft = changed ? draft : undefined;
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
  $("label").value = label;
  askLabel();
}

function showSaved(image) {
  const review = findReview(image);
  const own = review && review.prediction_id === image.id;
  $("saved").textContent = own ? `Saved: ${describe(review)}.` : "";
  $("undo").hidden = !own || review.reviewer !== $("reviewer").value;
}

function askLabel() { // only where the answer does not follow from the decision
  const { answer } = readForm();
  const decision = filled?.decision;
  const implied = state.model?.labels.length === 2 && state.model.labels.includes(decision);
  const needed = answer === "disagree" && !implied;
  $("label-row").hidden = !needed && !(answer === "agree" && !isLabel(decision));
  $("label").required = needed;
}

// Gives whether the review can be sent; the form says what is missing.
function check() {
  const { answer, comment } = readForm();
  const nothing = !answer && !comment.trim();
  $("review").elements.answer[0].setCustomValidity(nothing ? "Choose an answer, or write a comment." : "");
  return $("review").reportValidity();
}

async function save(image, { answer, comment, label }) {
  const reviewer = $("reviewer").value;
  if (reader.name === null) localStorage.setItem("reviewer", reviewer);
  if (image === filled) $("saved").textContent = "…";
  image.saving = true;
  announce("reviewed");
  try {
    const body = JSON.stringify({ answer, label: label || null, comment, reviewer });
    const answered = await call(`v1/predictions/${image.id}/reviews`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const review = await answered.json();
    Object.assign(image, { reviews: [...(image.reviews ?? []), review], draft: undefined, saving: false });
    rememberDraft(image.key, undefined);
    keep(image);
    if (image === filled) {
      filled = null; // shows what is stored
      fillReview(image);
      if (answerOf(review) === "comment") $("saved").textContent = "Saved: comment only.";
      if (answerOf(review) === "withdrawn") $("saved").textContent = "Withdrawn.";
      describeReviewed(image);
    }
  } catch (problem) {
    image.saving = false;
    if (answer !== "withdrawn" && image !== filled) {
      image.draft = { answer, comment, label };
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
  return save(filled, { answer, comment, label: $("label-row").hidden || answer === "cannot_tell" ? "" : label });
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
  if ($("label-row").hidden || !$("label").options[number]) return false;
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
