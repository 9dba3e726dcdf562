// The reading room: images come in, are read by the service, and are looked at and judged here.

import { call, Lost, readImage, toBlob } from "/page/service.js";
import { Viewer } from "/page/viewer.js";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 4;
const SHOWN = { uncertain: "uncertain", neither: "neither class", ood: "unlike training images" };

let model = null;
let images = [];
let current = null;
let filled = null; // whose verdict stands in the form
let order = { by: "probability", down: true };
let taken = 0;
let working = 0;
let lost = false;

const viewer = new Viewer($("image"));

// ---- the service ----

async function begin() {
  $("reviewer").value = localStorage.getItem("reviewer") ?? "";
  try {
    model = (await (await call("/v1/models")).json())[0];
    found();
  } catch (problem) {
    if (problem instanceof Lost) return lose(begin);
    return say($("outage"), problem.message);
  }
  readImage.heatmaps = model.heatmaps;
  $("model").textContent = `Model ${model.name}: ${model.labels.join(" or ")}, trained on ${model.training_images.toLocaleString("en")} images`;
  $("label").replaceChildren(new Option("choose", ""), ...model.labels.map((label) => new Option(label, label)));
  for (const option of $("filter").options) {
    if (option.value === "positive") option.textContent = model.positive ?? "";
    if (option.value === "negative") option.textContent = model.labels.find((label) => label !== model.positive);
    option.hidden = !model.positive && ["positive", "negative"].includes(option.value);
  }
  $("scale").style.background = `linear-gradient(to right, ${model.colours.join(", ")}), linear-gradient(#666, #666)`;
  listEarlier();
  work();
}

function lose(again) {
  if (lost) return;
  lost = true;
  say($("outage"), "The service does not answer. Images that wait are kept here and read as soon as it is back.");
  const look = async () => {
    try {
      await fetch("/healthz");
    } catch {
      return setTimeout(look, 2000);
    }
    found();
    again();
  };
  setTimeout(look, 2000);
}

document.addEventListener("troubled", (event) => say($("outage"), `${event.detail} Trying again.`));
document.addEventListener("recovered", found);

function found() {
  lost = false;
  $("outage").hidden = true;
}

function say(place, words) {
  place.textContent = words;
  place.hidden = false;
}

// ---- images come in ----

function take(files) {
  const chosen = [...files].filter((file) => !/^(\.|DICOMDIR$|Thumbs\.db$)/i.test(file.name));
  if (!chosen.length) return;
  for (const file of chosen) {
    const image = { key: taken++, file, name: file.path ?? (file.webkitRelativePath || file.name), invert: $("air-bright").checked, state: "waiting" };
    images.push(file.size ? image : { ...image, file: null, state: "error", error: "The file is empty." });
  }
  list();
  if (model) work();
  else if (!lost) begin(); // whoever let the token's question go is asked again
}

function work() {
  while (model && !lost && working < AT_ONCE) {
    const next = images.find((image) => image.state === "waiting");
    if (!next) break;
    next.state = "reading";
    working++;
    read(next).finally(() => { working--; work(); });
  }
  report();
}

async function read(image) {
  try {
    const answer = await readImage(image.file, image.invert);
    const { view, heatmap, ...rest } = answer;
    Object.assign(image, rest, { name: image.name, state: "read", view: toBlob(view), heatmap: heatmap && { ...heatmap, png: toBlob(heatmap.png) } });
    image.file = null;
    if (!current) select(image);
  } catch (problem) {
    if (problem instanceof Lost) {
      image.state = "waiting";
      lose(work);
    } else {
      Object.assign(image, { state: "error", error: problem.message, file: null });
      if (!current) select(image);
    }
  }
  listSoon();
  if (current === image) select(image);
}

function report() {
  const left = images.filter((image) => image.state === "waiting" || image.state === "reading").length;
  const failed = images.filter((image) => image.state === "error").length;
  const done = images.length - left;
  $("clear").disabled = !images.length || (left > 0 && model !== null);
  $("export").disabled = !images.some((image) => image.state === "read");
  if (!images.length) { $("progress").textContent = ""; return; }
  const unlike = images.filter((image) => image.simulated && image.decision === "out_of_distribution").length;
  const hint = !left && unlike ? " Simulated images are unlike real ones: a model trained on those should say so." : "";
  const words = `${done - failed} of ${images.length} read${failed ? `, ${failed} not readable` : ""}${left ? "" : "."}${hint}`;
  if ($("progress").textContent !== words) $("progress").textContent = words;
}

async function entries(items) {
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((done, fail) => entry.file(done, fail));
      files.push(Object.assign(file, { path: entry.fullPath.replace(/^\//, "") })); // images of a study share their names
    }
    else {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((done, fail) => reader.readEntries(done, fail));
        if (!some.length) break;
        for (const each of some) await walk(each);
      }
    }
  };
  for (const entry of items.map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await walk(entry);
  return files;
}

for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  const plain = [...event.dataTransfer.files];
  const walked = await entries(items);
  take(walked.length ? walked : plain);
});
for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
document.addEventListener("paste", (event) => take(event.clipboardData.files));
$("clear").addEventListener("click", () => {
  if (unkept().length && !confirm("There are verdicts or notes that are not kept. Clear the list all the same?")) return;
  images = [];
  current = filled = null;
  $("examples").disabled = false;
  $("reading").hidden = true;
  $("no-reading").hidden = $("nothing").hidden = false;
  $("no-reading").textContent = "What the model says of an image is shown here.";
  $("nothing").textContent = "No image yet. Drop one, or try a simulated image.";
  viewer.clear();
  list();
});
$("examples").addEventListener("click", async () => {
  $("examples").disabled = true;
  try {
    for (const { number, label } of await (await call("/v1/examples")).json()) {
      const picture = await (await call(`/v1/examples/${number}`)).blob();
      take([new File([picture], `simulated-${number + 1}-${label.toLowerCase()}.png`, { type: "image/png" })]);
      images.at(-1).simulated = true;
    }
  } catch (problem) {
    $("examples").disabled = false;
    if (problem instanceof Lost) lose(work);
    else $("progress").textContent = problem.message;
  }
});

// ---- the worklist ----

const chance = (image) => image.probability ?? null;
const wording = (image) => image.state === "read" ? SHOWN[image.decision] ?? image.decision : image.state === "error" ? "not readable" : "";

function chosen() {
  const kind = $("filter").value;
  const words = $("find").value.trim().toLowerCase();
  const fits = {
    "": () => true,
    positive: (image) => image.decision === model.positive,
    negative: (image) => model.labels.includes(image.decision) && image.decision !== model.positive,
    uncertain: (image) => ["uncertain", "neither"].includes(image.decision),
    ood: (image) => image.decision === "out_of_distribution",
    error: (image) => image.state === "error",
    open: (image) => image.state === "read" && !image.verdict,
  }[kind];
  const value = { name: (image) => image.name, probability: chance, decision: wording }[order.by];
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.key - b.key; // without a probability: last
    const way = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return (order.down ? -way : way) || a.key - b.key;
  };
  return images.filter((image) => fits(image) && image.name.toLowerCase().includes(words)).sort(compare);
}

function cell(words, kind) {
  const made = document.createElement("td");
  made.textContent = words;
  if (kind) made.className = kind;
  return made;
}

function list() {
  const focused = document.activeElement?.dataset?.key;
  const shown = chosen();
  if (images.length && !shown.length) {
    const row = document.createElement("tr");
    row.append(Object.assign(cell("No image fits."), { colSpan: 4 }));
    $("worklist").tBodies[0].replaceChildren(row);
    return report();
  }
  $("worklist").tBodies[0].replaceChildren(...shown.map((image) => {
    const row = document.createElement("tr");
    const name = document.createElement("td");
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: image.name });
    button.dataset.key = image.key;
    button.addEventListener("click", () => pick(image));
    name.append(button);
    if (image === current) row.setAttribute("aria-current", "true");
    row.addEventListener("click", (event) => { if (event.target !== button) pick(image); });
    const mark = cell(image.verdict ? (image.verdict === "agree" ? "✓" : "✗") : "");
    if (image.verdict) mark.setAttribute("aria-label", image.verdict === "agree" ? "agreed" : "disagreed");
    const waits = { waiting: "waits", reading: "…" }[image.state];
    row.append(name, cell(waits ?? (chance(image) === null ? "–" : chance(image).toFixed(3)), "number"), cell(wording(image), image.state === "error" ? "error" : ""), mark);
    return row;
  }));
  if (focused !== undefined) document.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
  report();
}

let due = false;
function listSoon() { // many images may be read within one frame
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; list(); });
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const by = button.dataset.sort;
    order = { by, down: order.by === by ? !order.down : by === "probability" };
    for (const other of document.querySelectorAll("[data-sort]")) other.closest("th").removeAttribute("aria-sort");
    button.closest("th").setAttribute("aria-sort", order.down ? "descending" : "ascending");
    list();
  });
}
for (const [id, event] of [["filter", "change"], ["find", "input"]]) $(id).addEventListener(event, list);

function step(by) {
  const shown = chosen().filter((image) => image.state === "read" || image.state === "error");
  const at = shown.indexOf(current);
  const next = shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by))];
  if (next) select(next);
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, select, dialog *, input:not([type=radio], [type=range], [type=checkbox], [type=file])")) return;
  if (event.key.toLowerCase() === "n") step(1);
  if (event.key.toLowerCase() === "p") step(-1);
});

$("export").addEventListener("click", () => {
  const columns = ["path", "probability", "decision", "predicted_label", "prediction_set", "ood_score", "verdict", "reviewed_label", "note", "digest", "id", "model", "error"];
  const quote = (value) => {
    let words = value === null || value === undefined ? "" : String(value);
    if (/^[=+@\t\r]/.test(words) || (/^-/.test(words) && Number.isNaN(Number(words)))) words = `'${words}`; // no formula in a spreadsheet
    return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
  };
  const rows = chosen().filter((image) => image.state === "read" || image.state === "error").map((image) => [
    image.name, image.probability, image.decision, image.predicted_label, image.prediction_set?.join("|"), image.ood_score, image.verdict, image.label, image.note, image.digest, image.id, image.model ?? model.name, image.error]);
  const text = [columns, ...rows].map((row) => row.map(quote).join(",")).join("\r\n");
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text, "\r\n"], { type: "text/csv" })), download: "worklist.csv" });
  link.click();
  URL.revokeObjectURL(link.href);
});

// ---- one image ----

function pick(image) {
  select(image);
  if (matchMedia("(max-width: 46rem)").matches) document.querySelector(".stage").scrollIntoView({ block: "start" });
}

function reveal(row) { // within its list; the page itself stays where it is
  const box = row.closest(".scroll");
  const head = box.querySelector("thead").offsetHeight;
  const [above, below] = [row.offsetTop - head - box.scrollTop, row.offsetTop + row.offsetHeight - box.clientHeight - box.scrollTop];
  if (above < 0) box.scrollTop += above;
  else if (below > 0) box.scrollTop += below;
}

function select(image) {
  if (filled !== image) keepDraft();
  current = image;
  for (const row of $("worklist").tBodies[0].rows) {
    const here = row.querySelector("[data-key]")?.dataset.key === String(image.key);
    if (here) { row.setAttribute("aria-current", "true"); reveal(row); } else row.removeAttribute("aria-current");
  }
  const read = image.state === "read";
  $("reading").hidden = !read;
  $("no-reading").hidden = read;
  $("nothing").hidden = read;
  if (!read) {
    const words = image.state === "error" ? `${image.name} cannot be read. ${image.error}` : `${image.name} waits to be read.`;
    $("no-reading").textContent = $("nothing").textContent = words;
    $("image").setAttribute("aria-label", words);
    viewer.clear();
    return;
  }
  if (image.view) {
    viewer.show(image.view, image.heatmap?.png).catch(() => {
      if (image === current) say($("nothing"), `${image.name} cannot be drawn by this browser.`);
    });
  } else {
    say($("nothing"), "The picture of an earlier read is not here any more. Drop the file again to see it.");
    viewer.clear();
  }
  const words = SHOWN[image.decision] ?? image.decision;
  $("decision").textContent = image.decision === "out_of_distribution" ? "Not like the training radiographs" : words[0].toUpperCase() + words.slice(1);
  $("words").textContent = image.words;
  $("chance").hidden = image.probability === null;
  if (image.probability !== null) {
    $("chance-label").textContent = `Probability of ${model.positive ?? image.predicted_label}`;
    $("probability").textContent = image.probability.toFixed(3);
    $("fill").style.width = `${100 * image.probability}%`;
    const marked = model.threshold !== null && (image.fingerprint ?? model.fingerprint) === model.fingerprint;
    $("threshold").hidden = !marked;
    $("threshold-label").textContent = !marked ? "" : `Mark: ${model.positive} is called from ${model.threshold.toFixed(3)} on.`;
    $("threshold").style.left = `${100 * (model.threshold ?? 0)}%`;
  }
  const facts = [["Image", image.name]];
  if (image.width) facts.push(["Size", `${image.width} × ${image.height}, ${image.format}`]);
  if (image.prediction_set.length && image.decision !== "out_of_distribution") facts.push(["Prediction set", image.prediction_set.join(" or ")]);
  if (image.ood_score !== null) facts.push(["OOD score", `${image.ood_score.toFixed(2)} (above 1: unlike training images)`]);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value })]));
  $("evidence").hidden = !image.heatmap;
  if (image.heatmap) {
    const { label, limit, logit, bias } = image.heatmap;
    $("against").textContent = (-limit).toFixed(1).replace("-", "−");
    $("for").textContent = `+${limit.toFixed(1)}`;
    $("legend-label").textContent = `Logits: yellow speaks for ${label}, blue against it. Their mean over what the network saw, and the bias of ${signed(bias)}, make the logit, ${signed(logit)}.`;
  }
  if (filled !== image) {
    filled = image;
    $("review").reset();
    $("reviewer").value = localStorage.getItem("reviewer") ?? "";
    $("kept").textContent = image.verdict ? `Kept: ${image.verdict}${image.label ? `, ${image.label}` : ""}.` : "";
    const { verdict, note, label } = image.draft ?? image;
    if (verdict) document.querySelector(`[name=verdict][value=${verdict}]`).checked = true;
    $("note").value = note ?? "";
    $("label").value = label ?? "";
    needLabel();
  }
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

function describeView() {
  const { image, level, window: width, scale } = viewer;
  $("level").value = 100 * level;
  $("window").value = 100 * width;
  $("invert").setAttribute("aria-pressed", String(viewer.inverted));
  $("evidence-shown").setAttribute("aria-pressed", String(viewer.evidence));
  $("evidence-shown").textContent = viewer.evidence ? "Shown" : "Hidden";
  if (!image || current?.state !== "read") {
    $("caption").textContent = "";
    $("image").setAttribute("aria-label", $("nothing").hidden ? "No image is shown." : $("nothing").textContent);
    return;
  }
  const zoom = Math.round((100 * scale * image.width) / current.width / (window.devicePixelRatio || 1));
  $("caption").textContent = `${current.name} · level ${Math.round(100 * level)} % · window ${Math.round(100 * width)} % · zoom ${zoom} %${viewer.inverted ? " · inverted" : ""}${viewer.map && !viewer.evidence ? " · evidence off" : ""}`;
  $("image").setAttribute("aria-label", `Image ${current.name}, ${current.words ?? ""}${viewer.inverted ? " Shown inverted." : ""}`);
}

$("zoom-in").addEventListener("click", () => viewer.zoom(1.25));
$("zoom-out").addEventListener("click", () => viewer.zoom(0.8));
$("fit").addEventListener("click", () => viewer.fit());
$("reset").addEventListener("click", () => { viewer.reset(); viewer.fit(); });
$("invert").addEventListener("click", () => viewer.set({ inverted: !viewer.inverted }));
$("drag").addEventListener("click", () => {
  viewer.dragWindows = !viewer.dragWindows;
  $("drag").setAttribute("aria-pressed", String(viewer.dragWindows));
  $("drag").textContent = viewer.dragWindows ? "Drag: window" : "Drag: move";
});
$("level").addEventListener("input", (event) => viewer.set({ level: event.target.value / 100 }));
$("window").addEventListener("input", (event) => viewer.set({ window: event.target.value / 100 }));
$("opacity").addEventListener("input", (event) => { viewer.opacity = event.target.value / 100; viewer.evidence = true; viewer.draw(); describeView(); });
$("evidence-shown").addEventListener("click", () => { viewer.evidence = !viewer.evidence; viewer.draw(); describeView(); });

// ---- verdicts ----

function keepDraft() {
  if (!filled) return;
  const draft = { verdict: new FormData($("review")).get("verdict") ?? undefined, note: $("note").value, label: $("label").value };
  const changed = draft.verdict !== filled.verdict || draft.note !== (filled.note ?? "") || draft.label !== (filled.label ?? "");
  filled.draft = changed ? draft : undefined;
}

function unkept() {
  keepDraft();
  return images.filter((image) => image.draft);
}
addEventListener("beforeunload", (event) => { if (unkept().length || images.some((image) => image.file)) event.preventDefault(); });

function needLabel() {
  const verdict = new FormData($("review")).get("verdict");
  const decided = current && !(current.decision in SHOWN);
  const implied = model?.labels.length === 2 && model.labels.includes(current?.decision);
  const needed = verdict === "disagree" && !implied;
  $("label-row").hidden = !needed && !(verdict === "agree" && !decided);
  $("label").required = needed;
}
$("review").addEventListener("change", needLabel);
$("review").addEventListener("submit", async (event) => {
  event.preventDefault();
  const image = filled;
  const button = event.submitter ?? $("review").querySelector("[type=submit]");
  button.disabled = true;
  const verdict = new FormData($("review")).get("verdict");
  localStorage.setItem("reviewer", $("reviewer").value);
  $("kept").textContent = "…";
  try {
    const body = JSON.stringify({ verdict, label: ($("label-row").hidden ? "" : $("label").value) || null, note: $("note").value, reviewer: $("reviewer").value });
    const kept = await (await call(`/v1/reads/${image.id}/verdicts`, { method: "POST", headers: { "Content-Type": "application/json" }, body })).json();
    Object.assign(image, { verdict: kept.verdict, label: kept.label, note: kept.note, draft: undefined });
    if (image === filled) {
      $("label").value = kept.label ?? "";
      $("kept").textContent = `Kept: ${kept.verdict}${kept.label ? `, ${kept.label}` : ""}.`;
    }
    list();
    listEarlier();
  } catch (problem) {
    const why = problem instanceof Lost ? "the service does not answer. Try again when it is back." : problem.message;
    if (image === filled) $("kept").textContent = `Not kept: ${why}`;
    else say($("outage"), `The verdict on ${image.name} is not kept: ${why}`);
    if (problem instanceof Lost) lose(work);
  } finally {
    button.disabled = false;
  }
});

// ---- earlier reads ----

async function listEarlier() {
  if (!$("earlier").open) return;
  try {
    const { reads } = await (await call("/v1/reads?limit=100")).json();
    $("earlier").querySelector("tbody").replaceChildren(...reads.map((read) => {
      const row = document.createElement("tr");
      const reviews = read.verdicts.map((one) => `${one.verdict}${one.label ? `, ${one.label}` : ""}`).join("; ");
      const name = document.createElement("td");
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: read.name || read.digest.slice(0, 12) });
      button.addEventListener("click", () => reopen(read));
      name.append(button);
      row.append(cell(new Date(read.at).toLocaleString()), name, cell(read.probability === null ? "–" : read.probability.toFixed(3), "number"), cell(SHOWN[read.decision] ?? read.decision), cell(reviews));
      return row;
    }));
  } catch (problem) {
    if (problem instanceof Lost) lose(work);
  }
}
$("earlier").addEventListener("toggle", listEarlier);

function reopen(read) {
  let image = images.find((one) => one.id === read.id);
  if (!image) {
    const last = read.verdicts.at(-1) ?? {};
    const words = `Read on ${new Date(read.at).toLocaleString()} by the model ${read.model}.`;
    const name = read.name || read.digest.slice(0, 12);
    image = { ...read, key: taken++, state: "read", name, words, view: null, heatmap: null, verdict: last.verdict, label: last.label, note: last.note };
    images.push(image);
    list();
  }
  pick(image);
}

viewer.changed = describeView;
begin();
