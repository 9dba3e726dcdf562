// Teaching: cases of known truth, answered one after the other. The score stays in this tab.

import { call, toBlob } from "./service.js";
import { $, announce, create, state } from "./state.js";

let cases = null; // as the service lists them
let round = null; // { numbers, answers }: answers by number
const images = new Map();
let before = null; // the image that was shown before teaching
const Z = 1.959964;

function bound(hits, n) { // Wilson 1927, in percent
  const rate = hits / n, middle = (rate + Z * Z / (2 * n)) / (1 + Z * Z / n);
  const half = (Z / (1 + Z * Z / n)) * Math.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)].map((end) => Math.round(100 * end));
}

function describeRate(hits, n) {
  if (!n) return "–";
  const [low, high] = bound(hits, n);
  return `${hits} of ${n} · ${Math.round((100 * hits) / n)}% (${low}–${high}%)`;
}

function remember() {
  sessionStorage.setItem("teaching", JSON.stringify({ source: cases.source, count: cases.cases.length, ...round }));
}

async function open() {
  if (!cases) cases = await (await call("v1/teaching")).json();
  const saved = JSON.parse(sessionStorage.getItem("teaching") ?? "null");
  const fits = saved && saved.source === cases.source && saved.count === cases.cases.length;
  round ??= fits ? { numbers: saved.numbers, answers: saved.answers } : begin(cases.cases.map(({ number }) => number));
  $("teaching-source").textContent = cases.source === "own"
    ? `${cases.cases.length} of your own images.`
    : `${cases.cases.length} simulated images. Nothing is stored or counted; the score stays in this tab.`;
  $("teaching-store-row").hidden = cases.source !== "own";
  $("teaching-none").hidden = cases.cases.length > 0;
  show();
}

function begin(numbers) {
  images.clear();
  return { numbers, answers: {} };
}

const nextNumber = () => round.numbers.find((number) => !(number in round.answers));

async function go(number) {
  if (number === undefined) return show();
  let image = images.get(number);
  if (!image) {
    image = { key: `case ${number}`, case: number, name: `Case ${number + 1}`, state: "done", id: null, warnings: [], prediction_set: [], probability: null, decision: null, withheld: true };
    image.picture = await (await call(`v1/teaching/${number}/image`)).blob();
    images.set(number, image);
  }
  if (state.mode !== "teaching") return;
  document.dispatchEvent(new CustomEvent("open", { detail: image }));
  show();
}

// Sends an answer; the image then has the truth and the model's answer.
export async function teach(image, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, store: $("teaching-store").checked && cases.source === "own" }) };
  const { truth, correct, stored, prediction } = await (await call(`v1/teaching/${image.case}/answers`, options)).json();
  const { heatmap, picture, name, id, reviews, image_reviews, ...plain } = prediction;
  Object.assign(image, plain, { withheld: false, heatmap: heatmap && { ...heatmap, png: toBlob(heatmap.png) }, taught: { truth, correct, stored, label: body.label } });
  round.answers[image.case] = { truth, label: body.label, model: prediction.decision };
  remember();
  document.dispatchEvent(new CustomEvent("taught", { detail: image }));
  show();
}

export function nextCase(by = 1) {
  const at = round.numbers.indexOf(state.current?.case);
  if (by < 0) return go(round.numbers[Math.max(0, at - 1)]);
  const later = round.numbers.slice(at + 1).find((number) => !(number in round.answers));
  return go(later ?? nextNumber());
}

function show() {
  const given = Object.values(round.answers);
  const { positive } = cases;
  const right = (each) => each.label === each.truth;
  const of = (test) => given.filter(test);
  const rows = [["Right", describeRate(of(right).length, given.length)]];
  if (positive) {
    const ill = of((each) => each.truth === positive), well = of((each) => each.truth !== positive);
    rows.push(["Sensitivity", describeRate(ill.filter(right).length, ill.length)], ["Specificity", describeRate(well.filter(right).length, well.length)]);
  }
  rows.push(["Model right", describeRate(of((each) => each.model === each.truth).length, given.length)]);
  $("score").replaceChildren(...rows.flatMap(([term, value]) => [create("dt", {}, term), create("dd", {}, value)]));
  const total = round.numbers.length, done = given.length === total && total > 0;
  $("teaching-progress").textContent = `${given.length} of ${total} answered`;
  $("case-list").replaceChildren(...round.numbers.map((number) => {
    const answer = round.answers[number];
    const [mark, kind] = answer ? (right(answer) ? ["✓", "right"] : ["✗", "missed"]) : ["", ""];
    const button = create("button", { type: "button", class: kind, "aria-label": `Case ${number + 1}${answer ? `, ${right(answer) ? "right" : "missed"}` : ""}` }, `${number + 1}${mark}`);
    if (number === state.current?.case) button.setAttribute("aria-current", "true");
    button.tabIndex = number === (state.current?.case ?? round.numbers[0]) ? 0 : -1;
    button.disabled = Boolean(answer) && !images.has(number); // answered before a reload
    button.addEventListener("click", () => go(number));
    return create("li", {}, button);
  }));
  const missed = round.numbers.filter((number) => round.answers[number] && !right(round.answers[number]));
  $("teaching-end").hidden = !done;
  if (done) $("teaching-end").firstElementChild.textContent = missed.length ? `Done: ${total - missed.length} of ${total} right.` : `Done: all ${total} right.`;
  $("again-missed").hidden = !missed.length;
  $("again-missed").classList.toggle("strong", done);
  $("again-missed").textContent = `Repeat the ${missed.length === 1 ? "one" : missed.length} I missed`;
  $("teaching-next").disabled = done;
}

function restart(numbers) {
  round = begin(numbers);
  remember();
  go(numbers[0]);
}

$("again-missed").addEventListener("click", () => restart(round.numbers.filter((number) => round.answers[number] && round.answers[number].label !== round.answers[number].truth)));
$("teaching-restart").addEventListener("click", () => restart(cases.cases.map(({ number }) => number)));
$("teaching-next").addEventListener("click", async () => {
  await nextCase();
  if (matchMedia("(max-width: 46rem)").matches) document.querySelector(".stage").scrollIntoView({ block: "start" });
});
$("teaching-store").addEventListener("change", () => { state.storing = $("teaching-store").checked; announce("revealed"); });
document.addEventListener("mode", async () => {
  if (state.mode !== "teaching") {
    if (state.current?.case !== undefined) document.dispatchEvent(new CustomEvent("open", { detail: before }));
    return;
  }
  before = state.current;
  $("teaching-said").textContent = "";
  try {
    await open();
    await go(nextNumber() ?? round.numbers.find((number) => images.has(number)));
  } catch (problem) {
    $("teaching-said").textContent = problem.message;
  }
});
