// Shows what DICOM nodes have received, answered and delivered. Refreshes every few seconds while the page is visible.

import { card, make } from "./elements.js";
import { call } from "./service.js";
import { $, name as decisionName } from "./state.js";

const EVERY = 4000; // milliseconds
const LONG = 600; // seconds; by default a study waits for no longer
const KINDS = { sr: "structured report", sc: "picture", map: "parametric map", seg: "segmentation", "fhir-r4": "FHIR R4 report", "fhir-r5": "FHIR R5 report" };
const SENDERS = { STOW: "over HTTP (STOW-RS)", WATCH: "from the watched folder" };
const times = (count) => (count === 1 ? "once" : `${count} times`);
const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

function last(seconds) { // how long something has lasted
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

const STATES = {
  waiting: ({ attempts }) => (attempts ? "being answered" : "waiting for more images of its study"),
  answered: ({ reason }) => (reason ? `answered, without results: ${reason}` : "answered"),
  skipped: ({ reason }) => reason ?? "not answered",
  set_aside: ({ reason }) => `set aside: ${reason}`,
  lost: ({ reason }) => `lost: ${reason}`,
};

const DELIVERIES = {
  due: ({ destination, attempts, error }) => (error ? `not yet delivered to ${destination}${attempts ? `, refused ${times(attempts)}` : ""}: ${error}` : `waiting to be sent to ${destination}`),
  sent: ({ destination }) => `sent to ${destination}, not yet confirmed`,
  delivered: ({ destination }) => `delivered to ${destination}`,
  failed: ({ destination, error }) => `could not be delivered to ${destination}: ${error ?? "no reason is known"}`,
  held: ({ destination }) => `not sent to ${destination}: dry run`,
};

function cell(label, lines, kind = "") { // lines of text, each with its class
  const made = make("td", { "data-label": label, role: "cell", ...(kind ? { class: kind } : {}) });
  made.append(...lines.filter(([words]) => words).map(([words, own]) => make("div", own ? { class: own } : {}, words)));
  return made;
}

function showWhen(moment) {
  const when = new Date(moment);
  const today = when.toDateString() === new Date().toDateString();
  return today ? when.toLocaleTimeString() : when.toLocaleString();
}

function listResults({ results, state, reason }) {
  const kinds = new Map(); // what several results have in common is shown once
  for (const { kind, deliveries } of results) {
    for (const each of deliveries.length ? deliveries : [null]) {
      const words = each ? DELIVERIES[each.state](each) : "made; there is no destination";
      const wrong = each && (each.state === "failed" || (each.state === "due" && each.error));
      kinds.set(words, { wrong, names: [...(kinds.get(words)?.names ?? []), KINDS[kind] ?? kind] });
    }
  }
  if (!kinds.size && state === "answered" && !reason) return [["no results", "quiet"]];
  return [...kinds].map(([words, { wrong, names }]) => [`${capital(names.join(" and "))}: ${words}`, wrong ? "wrong" : ""]);
}

function makeImage(image) {
  const { state, decision, predicted_label: label, probability, warnings } = image;
  const row = make("tr", { role: "row" });
  const decided = decision && (decision === "uncertain" && label ? `uncertain (${label})` : decisionName(decision));
  row.append(
    cell("Received", [[showWhen(image.received_at)], [SENDERS[image.calling] ?? (image.calling ? `from ${image.calling}` : ""), "quiet"], [image.study && `study ${image.study}`, "quiet"]]),
    cell("Answer", [[capital(STATES[state](image)), state === "set_aside" || state === "lost" ? "wrong" : ""], [decided && `${decided}${probability === null ? "" : `, probability ${probability.toFixed(3)}`}`], ...warnings.map((words) => [words, "quiet"])]),
    cell("Results", listResults(image)),
  );
  return row;
}

function makeDestination({ name, due, sent, delivered, failed, held, waits, error }) {
  const row = make("tr", { role: "row" });
  row.append(make("th", { scope: "row", role: "rowheader" }, name));
  row.append(
    cell("To be sent", [[String(due)], [waits, "quiet"]], "number"),
    cell("Sent, not confirmed", [[String(sent)]], "number"),
    cell("Delivered", [[String(delivered)]], "number"),
    cell("Could not be delivered", [[String(failed)], [error, "wrong reason"]], "number"),
    cell("Held by a dry run", [[String(held)]], "number"),
  );
  return row;
}

function sayHowLong({ oldest_due_seconds: oldest, ...destination }) { // in words, which change less often
  return { ...destination, waits: oldest !== null && oldest >= 10 ? `the first for ${last(oldest)}` : "" };
}

const drawn = new Map(); // rows by what they show: unchanged rows stay, and text selected in them stays selected

function fill(body, entries, build) {
  const known = drawn.get(body) ?? new Map();
  const rows = new Map(entries.map((entry) => {
    const key = JSON.stringify(entry);
    return [key, known.get(key) ?? build(entry)];
  }));
  drawn.set(body, rows);
  for (const row of [...body.children]) if (![...rows.values()].includes(row)) row.remove();
  [...rows.values()].forEach((row, i) => { if (body.children[i] !== row) body.insertBefore(row, body.children[i] ?? null); });
}

function showCards({ counts, destinations, oldest_waiting_seconds: oldest }) {
  const add = (what) => destinations.reduce((total, each) => total + each[what], 0);
  const [due, failed] = [add("due") + add("sent"), add("failed")];
  const late = oldest !== null && oldest > LONG ? ". Is the node running?" : "";
  const cards = [
    ["Waiting", counts.waiting, oldest === null ? "no image waits" : `images; the first for ${last(oldest)}${late}`],
    ["Answered today", counts.answered_today, `images (UTC); ${counts.answered} in all${counts.skipped ? `, ${counts.skipped} skipped` : ""}`],
    ["Set aside", counts.set_aside, counts.lost ? `images that cannot be answered; ${counts.lost} lost` : "images that cannot be answered"],
    ["Not delivered", due + failed, failed ? `results; ${failed} of them given up` : "results"],
  ];
  cards.forEach(([title, value, below], i) => {
    const old = $("cards").children[i];
    if (!old) $("cards").append(card(title, String(value), below));
    else for (const [tag, words] of [["strong", String(value)], ["p", below]]) if (old.querySelector(tag).textContent !== words) old.querySelector(tag).textContent = words;
  });
}

function say(words) {
  if ($("state").textContent !== words) $("state").textContent = words; // screen readers read each change aloud
}

async function look() {
  let found;
  try {
    if (!$("model").textContent) {
      const [model] = await (await call("v1/models")).json();
      $("model").textContent = `Model ${model.name}, ${model.fingerprint.slice(0, 12)}`;
    }
    found = await (await call("v1/node")).json();
  } catch (problem) {
    say(problem.message);
    return;
  }
  say("");
  $("nobody").hidden = found.present;
  $("node").hidden = !found.present;
  if (!found.present) return;
  showCards(found);
  fill($("destinations"), found.destinations.map(sayHowLong), makeDestination);
  $("nowhere").hidden = found.destinations.length > 0;
  fill($("images"), found.images, makeImage);
  $("nothing-yet").hidden = found.images.length > 0;
  $("updated").textContent = `As of ${new Date().toLocaleTimeString()}. Refreshes every ${EVERY / 1000} s.`;
}

let timer = null;
let looking = false;

async function run() {
  clearTimeout(timer);
  if (looking || document.hidden) return;
  looking = true;
  await look().finally(() => { looking = false; });
  timer = setTimeout(run, EVERY);
}

document.addEventListener("visibilitychange", run);
document.addEventListener("troubled", (event) => say(`${event.detail} Trying again.`));
run();
