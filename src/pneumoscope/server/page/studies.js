// Studies: which images of the worklist belong together by what the service says of them, and in which order they hang.

import { isReviewed } from "./answers.js";
import { recall, remember } from "./preferences.js";
import { kindOf } from "./state.js";

const LATERAL = /^(LL|RL|LAT|LATERAL|LLD|RLD|LLO|RLO)$/i;
const WORST = ["positive", "uncertain", "outside", "negative", "unreadable"];
const collator = new Intl.Collator(undefined, { numeric: true });

export const isLateral = ({ view }) => LATERAL.test(view ?? "");

// Whether both are of one study, or at least of one patient.
export const isRelated = (a, b) => keyOf(a) !== null && (keyOf(a) === keyOf(b) || Boolean(a.patient && a.patient === b.patient));

// Of an image whose study is known; two patients never share one, even if a file says so.
export function keyOf({ state: progress, study_uid: uid, patient, date }) {
  if (progress !== "done" || !(uid || patient)) return null;
  return `${patient ?? ""} ${uid ?? date ?? ""}`;
}

export const hang = (a, b) => isLateral(a) - isLateral(b) || collator.compare(a.view ?? "", b.view ?? "") || collator.compare(a.name, b.name) || a.key - b.key;
export const newest = (a, b) => (b.date ?? "").localeCompare(a.date ?? "");

export function findStudies(images) { // Map of studies by their keys
  const studies = new Map();
  for (const image of images) {
    const key = keyOf(image);
    if (key === null) continue;
    const found = studies.get(key);
    if (found) found.images.push(image);
    else studies.set(key, { key: `study ${key}`, patient: image.patient, date: image.date, accession: image.accession_number, images: [image] });
  }
  for (const study of studies.values()) study.images.sort(hang);
  return studies;
}

// ---- the switch ----

let grouped = recall("grouped", false);
export const isGrouped = () => grouped;
export function chooseGrouped(chosen) {
  grouped = chosen;
  remember("grouped", chosen);
}

// ---- order ----

// Images in a given order, those of a study and of a patient brought together where the first of them stands.
export function group(images) {
  const studies = findStudies(images);
  const patients = new Map();
  for (const study of studies.values()) {
    if (!study.patient) continue;
    if (patients.has(study.patient)) patients.get(study.patient).push(study);
    else patients.set(study.patient, [study]);
  }
  const placed = new Set();
  return images.flatMap((image) => {
    const study = studies.get(keyOf(image));
    if (!study) return [image];
    if (placed.has(study)) return [];
    const all = (patients.get(study.patient) ?? [study]).sort(newest);
    for (const each of all) placed.add(each);
    return all.flatMap((each) => each.images);
  });
}

// Rows for the list: a heading before the images of each study. Counts are of all images of a study, shown or not.
export function addHeadings(shown, studies) {
  const items = [];
  let before = null;
  let last = null;
  for (const image of shown) {
    const study = studies.get(keyOf(image));
    if (study && study !== last) {
      items.push(Object.assign(study, { earlier: Boolean(study.patient) && before === study.patient, study: true }));
      before = study.patient;
    }
    last = study;
    items.push(image);
  }
  return items;
}

// ---- words ----

export function hintAtStudies(studies) { // grouping is the reader's choice
  const several = [...studies.values()].filter(({ images }) => images.length > 1).length;
  return several ? `${several} ${several === 1 ? "study has" : "studies have"} several images` : "";
}

export const listViews = (images) => [...new Set(images.map((image) => image.view || "view unknown"))].join(", ");

export function describeStudy({ date, accession, images, patient, earlier }) {
  const known = images.some((image) => image.view);
  const parts = [`${date ?? "No date"}${earlier ? " (earlier)" : ""}`, known && listViews(images), accession].filter(Boolean);
  const reviewed = images.filter(isReviewed).length;
  const worst = images.filter(({ decision }) => decision).sort((a, b) => WORST.indexOf(kindOf(a)) - WORST.indexOf(kindOf(b)))[0];
  const title = [...parts, patient && `patient ${patient} (pseudonym)`, `${images.length} ${images.length === 1 ? "image" : "images"}`].filter(Boolean).join("\n");
  return { words: parts.join(" · "), title, reviewed: `${reviewed} of ${images.length}`, complete: reviewed === images.length, worst };
}

export const describeImage = ({ view, date }) => [view || "View unknown", date || "No date"];
