// The worklist: rows, progress, sorting, filters, steps to the next image.

import { answerOf, findReview, isOpen, isReviewed } from "./answers.js";
import { exportTable } from "./export.js";
import { pick, select } from "./image.js";
import { rememberView } from "./kept.js";
import { findNext, findNextStudy, findOnward, listShown, order } from "./order.js";
import { translateWarning } from "./prediction.js";
import { describeReading } from "./reading.js";
import { Rows } from "./rows.js";
import { $, create, kindOf, makeChip, name, round, state } from "./state.js";
import { addHeadings, chooseGrouped, describeStudy, findStudies, hintAtStudies, isGrouped } from "./studies.js";

const MARKS = { agree: ["✓", "agreed"], disagree: ["✗", "disagreed"], cannot_tell: ["?", "cannot tell"] };
const box = document.querySelector("#worklist").closest(".scroll");

function makeRow() {
  const button = create("button", { type: "button", tabindex: "-1" }, create("bdi", { dir: "ltr" }), create("bdi", { dir: "ltr" }));
  const row = create("tr", { role: "row" });
  for (const kind of ["name", "number", "", "mark"]) row.append(create("td", { role: "gridcell", class: kind }));
  row.cells[0].append(button);
  row.addEventListener("click", () => { if (row.image ?? row.study) pick(row.image ?? row.study.images[0]); });
  return row;
}

const pen = document.createElement("canvas").getContext("2d");

function showName(button, name) { // cut in the middle if there is no space: what tells images apart is often at the end
  const end = name.length > 20 ? 14 : 0;
  const [first, last] = button.children;
  first.textContent = name.slice(0, name.length - end);
  last.textContent = name.slice(name.length - end);
  button.classList.toggle("long", end > 0);
  pen.font = getComputedStyle($("worklist")).font;
  button.style.setProperty("--end", `${Math.ceil(pen.measureText(last.textContent).width)}px`);
  button.setAttribute("aria-label", name);
}

function fillRow(row, item) {
  const image = item.heading || item.study ? null : item;
  row.image = image;
  row.study = item.study ? item : null;
  row.classList.toggle("heading", !image);
  row.classList.toggle("study", Boolean(item.study));
  const [first, number, decision, mark] = row.cells;
  const button = first.firstChild;
  button.hidden = !image;
  if (!image) {
    row.removeAttribute("aria-selected");
    row.removeAttribute("aria-current");
    if (item.study) return fillStudy(row, item);
    first.dataset.heading = item.heading;
    for (const cell of [number, decision, mark]) cell.replaceChildren();
    return;
  }
  delete first.dataset.heading;
  button.dataset.key = image.key;
  if (button.textContent !== image.name) showName(button, image.name);
  button.tabIndex = image.key === rows.kept ? 0 : -1;
  const current = image === state.current;
  row.setAttribute("aria-selected", String(current));
  if (current) row.setAttribute("aria-current", "true");
  else row.removeAttribute("aria-current");
  const review = findReview(image);
  const warnings = (image.warnings ?? []).map(translateWarning);
  const look = [image.state, image.probability, image.decision, kindOf(image), review && answerOf(review), image.saving, image.withheld, describeReading(image), warnings.length, image.name].join("\n");
  if (row.look === look) return;
  row.look = look;
  const progress = { waiting: "waiting", sent: "…" }[image.state];
  number.textContent = progress ?? round(image.probability);
  const chip = image.state === "error" ? makeChip(image, "not readable") : image.withheld ? create("span", { class: "unread" }, "not read") : image.state === "done" ? makeChip(image) : "";
  decision.replaceChildren(chip);
  row.title = [image.name, ...warnings].join("\n");
  if (warnings.length) decision.prepend(create("span", { class: "warned", role: "img", "aria-label": `Warning: ${warnings.join(" ")}` }, "⚠"));
  const [sign, words] = image.saving ? ["…", "being saved"] : describeReading(image) ? ["✓", `read: ${describeReading(image)}`] : MARKS[review && answerOf(review)] ?? ["", ""];
  mark.textContent = sign;
  if (words) mark.setAttribute("aria-label", words);
  else mark.removeAttribute("aria-label");
}

function fillStudy(row, study) {
  const { words, title, reviewed, complete, worst } = describeStudy(study);
  const look = [words, title, reviewed, worst?.decision, worst && kindOf(worst)].join("\n");
  if (row.look === look) return;
  row.look = look;
  row.title = title;
  const [first, number, decision, mark] = row.cells;
  first.dataset.heading = words;
  number.textContent = reviewed;
  number.setAttribute("aria-label", `${reviewed} reviewed`);
  decision.replaceChildren(worst ? makeChip(worst) : ""); // none if all answers are withheld
  mark.textContent = complete ? "✓" : "";
}

const rows = new Rows(box, $("worklist").tBodies[0], { make: makeRow, fill: fillRow });

let restored = false; // until then, what the page shows is not what the reader chose
function list() {
  const shown = listShown();
  const failed = shown.filter((image) => image.state === "error").length;
  const studies = findStudies(state.images);
  const grouped = isGrouped();
  $("grouped").checked = grouped;
  $("grouped-row").hidden = !studies.size;
  $("several").textContent = grouped ? "" : hintAtStudies(studies);
  $("worklist").classList.toggle("grouped", grouped);
  const longest = Math.max(9, ...[...(state.model?.labels ?? []), ...new Set(state.images.map((image) => name(image.decision) ?? ""))].map((words) => words.length));
  $("worklist").style.setProperty("--decision", `${Math.min(9.4, 2.8 + 0.5 * longest)}rem`); // names have the rest
  const items = grouped ? addHeadings(shown, studies) : [...shown];
  if (failed) items.splice(items.length - failed, 0, { key: "heading", heading: `Not readable (${failed})` });
  $("worklist").setAttribute("aria-rowcount", items.length + 1);
  $("no-match").hidden = !state.images.length || shown.length > 0;
  rows.kept = (shown.includes(state.current) ? state.current : shown[0])?.key;
  const inList = $("worklist").contains(document.activeElement);
  rows.show(items);
  if (inList && !$("worklist").contains(document.activeElement)) focusRow(); // its row is no longer shown
  report(shown.length);
  if (restored) rememberView({ by: order.by, descending: order.descending, filter: $("filter").value, search: $("search").value });
}

let due = null;
let took = 0;
export function listSoon() { // many images may be answered within one frame; a long list is not sorted for each
  due ??= setTimeout(() => requestAnimationFrame(() => {
    due = null;
    const start = performance.now();
    list();
    took = performance.now() - start;
  }), Math.min(1000, 10 * took));
}

function report(shown) {
  const { images, model } = state;
  const left = images.filter((image) => image.state === "waiting" || image.state === "sent").length;
  const failed = images.filter((image) => image.state === "error").length;
  const open = images.filter((image) => image.state === "done" && isOpen(image)).length;
  const reviewed = images.filter(isReviewed).length;
  $("clear").disabled = !images.length || (left > 0 && model !== null);
  $("export").disabled = !images.some((image) => image.state === "done");
  $("list").classList.toggle("filled", images.length > 0);
  const outside = images.some((image) => image.simulated && image.decision === "out_of_distribution");
  const hint = !left && outside ? " For a model trained on real images, simulated ones should be out of distribution." : "";
  const words = images.length ? `${images.length - left - failed} of ${images.length} ${state.mode === "blind" ? "ready" : "predicted"}${failed ? `, ${failed} not readable` : ""}${left ? "" : "."}${hint}` : "";
  if ($("progress").textContent !== words) $("progress").textContent = words;
  const counts = state.mode === "blind" ? (open ? `${open} not read` : "None left to read") : open ? `${reviewed} reviewed, ${open} not reviewed` : reviewed ? "None left to review" : "";
  const more = images.length ? [counts, shown < images.length && `${shown} shown`].filter(Boolean).join(" · ") : "";
  if ($("open-count").textContent !== more) $("open-count").textContent = more;
}

document.addEventListener("selected", () => {
  $("moved").textContent = "";
  if (state.current && rows.places.has(state.current.key)) {
    rows.kept = state.current.key;
    rows.reveal(state.current.key);
  } else rows.paint();
  if (restored) rememberView({ current: state.current?.key ?? null });
});

export function focusRow() {
  const button = $("worklist").querySelector('[data-key][tabindex="0"]');
  button?.focus({ preventScroll: true });
  return Boolean(button);
}

export function step(by, find = findNext) {
  const inList = $("worklist").contains(document.activeElement);
  const next = find(by);
  if (next && next !== state.current) select(next);
  if (next && inList) focusRow();
}

// To the image that is read next; says so if that is not the one below.
export function goOn() {
  const { next, wrapped } = findOnward();
  step(1, () => next);
  if (wrapped) $("moved").textContent = next ? ` · From the end of the list back to ${next.name}` : " · The end of the list";
}

export const stepStudy = (by) => step(by, findNextStudy);

function showOrder() {
  for (const button of document.querySelectorAll("[data-sort]")) {
    const head = button.closest("th");
    if (button.dataset.sort === order.by) head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

export function restoreView(view) {
  if (view.by) Object.assign(order, { by: view.by, descending: view.descending });
  $("filter").value = view.filter ?? "";
  $("search").value = view.search ?? "";
  showOrder();
  restored = true;
  list();
  const current = state.images.find((image) => image.key === view.current);
  if (current) select(current);
  if (view.scroll) box.scrollTop = view.scroll;
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const by = button.dataset.sort;
    Object.assign(order, { by, descending: order.by === by ? !order.descending : by === "probability" });
    showOrder();
    list();
  });
}
for (const [id, event] of [["filter", "change"], ["search", "input"]]) $(id).addEventListener(event, () => { box.scrollTop = 0; list(); });
$("grouped").addEventListener("change", (event) => { chooseGrouped(event.target.checked); list(); rows.reveal(state.current?.key); });
document.addEventListener("mode", () => { // sorting by the model's answer would reveal it
  if (state.mode === "blind") Object.assign(order, { by: "name", descending: false });
  showOrder();
  list();
});
for (const event of ["listed", "reviewed"]) document.addEventListener(event, list);
const rememberPlace = () => { if (restored) rememberView({ scroll: box.scrollTop }); };
box.addEventListener("scrollend", rememberPlace, { passive: true });
addEventListener("pagehide", rememberPlace);
$("export").addEventListener("click", exportTable);
