// The reviews of an image: which one counts, in words, and all of them with reviewer and time.

import { $, create, name, showTime, state } from "./state.js";

export const WORDS = { agree: "agree", disagree: "disagree", cannot_tell: "cannot tell", comment: "comment only", withdrawn: "withdrawn" };

export const answerOf = (review) => review.answer;

export function describe(review) {
  const answer = answerOf(review);
  return review.label && answer !== "withdrawn" ? `${WORDS[answer]}, ${review.label}` : WORDS[answer];
}

// Reviews of the same decision by the same model count, also if they are of an earlier prediction of this file.
const isOfThis = (image, { decision, fingerprint }) => decision === undefined || (decision === image.decision && fingerprint === image.fingerprint);

export function findReview(image) {
  if (image.withheld) return null; // what others say would reveal the answer
  const counted = (image.reviews ?? []).filter((review) => isOfThis(image, review));
  const latest = new Map(); // of each reviewer
  for (const review of counted) {
    if (answerOf(review) === "comment") continue;
    const reader = `${review.verified} ${review.reviewer}`;
    latest.delete(reader);
    latest.set(reader, review);
  }
  return [...latest.values()].filter((review) => answerOf(review) !== "withdrawn").at(-1) ?? null;
}

export const isReviewed = (image) => findReview(image) !== null;
export const isOpen = (image) => (state.mode === "blind" ? Boolean(image.withheld) : Boolean(image.id) && !isReviewed(image)); // still to be done

// Of a message of the service: all that are known of the file.
export const takeReviews = ({ image_reviews: all, reviews }) => (all?.length ? all : reviews) ?? [];

export function showHistory(image) {
  const reviews = [...(image.reviews ?? [])].reverse();
  const counted = findReview(image);
  $("history").hidden = !reviews.length;
  $("history-count").textContent = `Reviews of this image (${reviews.length})`;
  $("history-list").replaceChildren(...reviews.map((review) => {
    const item = create("li", {}, create("strong", {}, describe(review)), ` by ${review.reviewer || "somebody without a name"}${review.reviewer && !review.verified ? " (name not verified)" : ""}, `, create("time", { datetime: review.created_at }, showTime(review.created_at)));
    if (review === counted) item.append(create("span", { class: "quiet" }, " · counts"));
    if (!isOfThis(image, review)) item.append(create("p", { class: "quiet" }, `Of another prediction: ${name(review.decision)}, by the model ${review.model}.`));
    if (review.comment) item.append(create("p", { class: "comment" }, review.comment));
    return item;
  }));
}

// What to say of a review that was there before the image was added.
export function describeEarlier(image) {
  const review = findReview(image);
  if (!review || review.prediction_id === image.id) return "";
  return `Reviewed earlier by ${review.reviewer || "somebody without a name"} on ${showTime(review.created_at)}: ${describe(review)}.`;
}
