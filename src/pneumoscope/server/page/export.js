// The worklist as a table for spreadsheets and programs.

import { answerOf, findReview } from "./answers.js";
import { listShown } from "./order.js";
import { create } from "./state.js";

const IDENTITY = ["patient", "age", "sex", "view", "laterality", "date", "accession_number", "study_uid", "series_uid", "sop_uid"];
const MARK = "\ufeff"; // of byte order: without it, a spreadsheet takes the text for another encoding

function quote(value) {
  let words = value === null || value === undefined ? "" : String(value);
  if (/^[=+@\t\r]/.test(words) || (/^-/.test(words) && Number.isNaN(Number(words)))) words = `'${words}`; // no formula in a spreadsheet
  return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
}

const join = (values) => values?.join("|");
const COLUMNS = {
  path: (image) => image.name, probability: (image) => image.probability, decision: (image) => image.decision,
  predicted_label: (image) => image.predicted_label, prediction_set: (image) => join(image.prediction_set),
  ood_score: (image) => image.ood_score, warnings: (image) => join(image.warnings),
  answer: (image, review) => review && answerOf(review), agrees: (image, review) => review?.agrees, reviewed_label: (image, review) => review?.label,
  comment: (image, review) => review?.comment, reviewer: (image, review) => review?.reviewer, reviewed_at: (image, review) => review?.created_at,
  reading: (image) => image.readings?.length ? image.readings[0].label ?? "cannot tell" : "", reading_confidence: (image) => image.readings?.[0]?.confidence,
  reading_with_ai: (image) => image.readings?.findLast((each) => each.with_ai)?.label,
  reviews: (image) => image.reviews?.length ?? 0,
  ...Object.fromEntries(IDENTITY.map((name) => [name, (image) => image[name]])),
  sha256: (image) => image.sha256, id: (image) => image.id, predicted_at: (image) => image.created_at,
  model: (image) => image.model, fingerprint: (image) => image.fingerprint, error: (image) => image.error,
};

export function exportTable() { // the images that are shown, in their order
  const images = listShown().filter((image) => image.state === "done" || image.state === "error");
  const table = images.map((image) => Object.values(COLUMNS).map((value) => value(image, findReview(image))));
  const text = [Object.keys(COLUMNS), ...table].map((row) => row.map(quote).join(",")).join("\r\n");
  const address = URL.createObjectURL(new Blob([MARK, text, "\r\n"], { type: "text/csv" }));
  create("a", { href: address, download: "worklist.csv" }).click();
  URL.revokeObjectURL(address);
}
