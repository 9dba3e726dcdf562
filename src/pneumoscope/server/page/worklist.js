// The worklist: progress, sorting, filters, steps to the next image, export.

import { pick, select } from "./image.js";
import { $, makeCell, name, state } from "./state.js";

let order = { by: "probability", descending: true };

const probability = (image) => image.probability ?? null;
const decision = (image) => image.state === "done" ? name(image.decision) : image.state === "error" ? "not readable" : "";
const VALUES = { name: (image) => image.name, probability, decision };
const FILTERS = {
  "": () => true,
  positive: (image) => image.decision === state.model.positive,
  negative: (image) => state.model.labels.includes(image.decision) && image.decision !== state.model.positive,
  uncertain: (image) => image.decision === "uncertain",
  out_of_distribution: (image) => image.decision === "out_of_distribution",
  error: (image) => image.state === "error",
  open: (image) => image.state === "done" && !image.review,
};

function listShown() {
  const words = $("search").value.trim().toLowerCase();
  const value = VALUES[order.by];
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.key - b.key; // without a probability: last
    const sign = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return (order.descending ? -sign : sign) || a.key - b.key;
  };
  return state.images.filter((image) => FILTERS[$("filter").value](image) && image.name.toLowerCase().includes(words)).sort(compare);
}

function makeRow(image) {
  const row = document.createElement("tr");
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: image.name });
  button.dataset.key = image.key;
  button.addEventListener("click", () => pick(image));
  row.addEventListener("click", (event) => { if (event.target !== button) pick(image); });
  if (image === state.current) row.setAttribute("aria-current", "true");
  const mark = makeCell(image.review ? (image.review.agrees ? "✓" : "✗") : "");
  if (image.review) mark.setAttribute("aria-label", image.review.agrees ? "agreed" : "disagreed");
  const progress = { waiting: "waiting", sent: "…" }[image.state];
  row.append(makeCell(button), makeCell(progress ?? probability(image)?.toFixed(3) ?? "–", "number"), makeCell(decision(image), image.state === "error" ? "error" : ""), mark);
  return row;
}

function list() {
  const focused = document.activeElement?.dataset?.key;
  const shown = listShown();
  const rows = shown.map(makeRow);
  if (state.images.length && !shown.length) {
    rows.push(document.createElement("tr"));
    rows[0].append(Object.assign(makeCell("No image matches."), { colSpan: 4 }));
  }
  $("worklist").tBodies[0].replaceChildren(...rows);
  if (focused !== undefined) document.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
  report();
}

let due = false;
export function listSoon() { // many images may be answered within one frame
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; list(); });
}

function report() {
  const { images, model } = state;
  const left = images.filter((image) => image.state === "waiting" || image.state === "sent").length;
  const failed = images.filter((image) => image.state === "error").length;
  $("clear").disabled = !images.length || (left > 0 && model !== null);
  $("export").disabled = !images.some((image) => image.state === "done");
  const outside = images.some((image) => image.simulated && image.decision === "out_of_distribution");
  const hint = !left && outside ? " For a model trained on real images, simulated ones should be out of distribution." : "";
  const words = images.length ? `${images.length - left - failed} of ${images.length} read${failed ? `, ${failed} not readable` : ""}${left ? "" : "."}${hint}` : "";
  if ($("progress").textContent !== words) $("progress").textContent = words;
}

function reveal(row) { // within its list; the page itself stays where it is
  const box = row.closest(".scroll");
  const head = box.querySelector("thead").offsetHeight;
  const above = row.offsetTop - head - box.scrollTop;
  const below = row.offsetTop + row.offsetHeight - box.clientHeight - box.scrollTop;
  if (above < 0) box.scrollTop += above;
  else if (below > 0) box.scrollTop += below;
}

function markCurrent() {
  for (const row of $("worklist").tBodies[0].rows) {
    const current = state.current && row.querySelector("[data-key]")?.dataset.key === String(state.current.key);
    if (current) { row.setAttribute("aria-current", "true"); reveal(row); } else row.removeAttribute("aria-current");
  }
}

function step(by) {
  const shown = listShown().filter((image) => image.state === "done" || image.state === "error");
  const at = shown.indexOf(state.current);
  const next = shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by))];
  if (next) select(next);
}

function quote(value) {
  let words = value === null || value === undefined ? "" : String(value);
  if (/^[=+@\t\r]/.test(words) || (/^-/.test(words) && Number.isNaN(Number(words)))) words = `'${words}`; // no formula in a spreadsheet
  return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
}

function exportTable() {
  const join = (values) => values?.join("|");
  const columns = {
    path: (image) => image.name, probability, decision: (image) => image.decision, predicted_label: (image) => image.predicted_label,
    prediction_set: (image) => join(image.prediction_set), ood_score: (image) => image.ood_score, warnings: (image) => join(image.warnings),
    agrees: (image) => image.review?.agrees, reviewed_label: (image) => image.review?.label, comment: (image) => image.review?.comment,
    sha256: (image) => image.sha256, id: (image) => image.id, model: (image) => image.model, error: (image) => image.error,
  };
  const rows = listShown().filter((image) => image.state === "done" || image.state === "error").map((image) => Object.values(columns).map((value) => value(image)));
  const text = [Object.keys(columns), ...rows].map((row) => row.map(quote).join(",")).join("\r\n");
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text, "\r\n"], { type: "text/csv" })), download: "worklist.csv" });
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const by = button.dataset.sort;
    order = { by, descending: order.by === by ? !order.descending : by === "probability" };
    for (const other of document.querySelectorAll("[data-sort]")) other.closest("th").removeAttribute("aria-sort");
    button.closest("th").setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    list();
  });
}
for (const [id, event] of [["filter", "change"], ["search", "input"]]) $(id).addEventListener(event, list);
for (const event of ["listed", "reviewed"]) document.addEventListener(event, list);
document.addEventListener("selected", markCurrent);
$("export").addEventListener("click", exportTable);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, select, dialog *, input:not([type=radio], [type=range], [type=checkbox], [type=file])")) return;
  if (event.key.toLowerCase() === "n") step(1);
  if (event.key.toLowerCase() === "p") step(-1);
});
