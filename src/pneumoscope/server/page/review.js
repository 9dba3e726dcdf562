// The review of an image. What is not saved yet waits with its image as a draft.

import { lose } from "./outage.js";
import { call, Lost } from "./service.js";
import { $, announce, isLabel, say, state } from "./state.js";

let filled = null; // the image whose review is in the form

const describe = ({ agrees, label }) => `${agrees ? "agree" : "disagree"}${label ? `, ${label}` : ""}`;
export const describeReviews = (reviews) => reviews.map(describe).join("; ");

function readForm() {
  const agrees = new FormData($("review")).get("agrees");
  return { agrees: agrees === null ? undefined : agrees === "true", comment: $("comment").value, label: $("label").value };
}

export function keepDraft(next = null) {
  if (!filled || filled === next) return;
  const draft = readForm();
  const { agrees, comment, label } = filled.review ?? {};
  const changed = draft.agrees !== agrees || draft.comment !== (comment ?? "") || draft.label !== (label ?? "");
  filled.draft = changed ? draft : undefined;
}

export function hasDrafts() {
  keepDraft();
  return state.images.some((image) => image.draft);
}

export function clearReview() {
  filled = null;
}

export function fillReview(image) {
  if (filled === image) return;
  filled = image;
  $("review").reset();
  $("reviewer").value = localStorage.getItem("reviewer") ?? "";
  $("saved").textContent = image.review ? `Saved: ${describe(image.review)}.` : "";
  const { agrees, comment, label } = image.draft ?? image.review ?? {};
  if (agrees !== undefined) document.querySelector(`[name=agrees][value=${agrees}]`).checked = true;
  $("comment").value = comment ?? "";
  $("label").value = label ?? "";
  askLabel();
}

function askLabel() { // only where the answer does not follow from the decision
  const { agrees } = readForm();
  const decision = filled?.decision;
  const implied = state.model?.labels.length === 2 && state.model.labels.includes(decision);
  const needed = agrees === false && !implied;
  $("label-row").hidden = !needed && !(agrees && !isLabel(decision));
  $("label").required = needed;
}

async function save(image) {
  const { agrees, comment, label } = readForm();
  const reviewer = $("reviewer").value;
  localStorage.setItem("reviewer", reviewer);
  $("saved").textContent = "…";
  try {
    const body = JSON.stringify({ agrees, label: ($("label-row").hidden ? "" : label) || null, comment, reviewer });
    const answer = await call(`v1/predictions/${image.id}/reviews`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    Object.assign(image, { review: await answer.json(), draft: undefined });
    if (image === filled) {
      $("label").value = image.review.label ?? "";
      $("saved").textContent = `Saved: ${describe(image.review)}.`;
    }
    announce("reviewed");
  } catch (problem) {
    const reason = problem instanceof Lost ? "the service does not respond. Try again when it is back." : problem.message;
    if (image === filled) $("saved").textContent = `Not saved: ${reason}`;
    else say($("outage"), `The review of ${image.name} is not saved: ${reason}`);
    if (problem instanceof Lost) lose(() => {});
  }
}

$("review").addEventListener("change", askLabel);
$("review").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter ?? $("review").querySelector("[type=submit]");
  button.disabled = true;
  await save(filled);
  button.disabled = false;
});
