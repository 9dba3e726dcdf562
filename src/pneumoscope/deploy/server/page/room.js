// The reading room: films come in, are read by the service, and are looked at and judged here.

import { call, Lost, readFilm, toBlob } from "/page/service.js";
import { Viewer } from "/page/viewer.js";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 4;
const SHOWN = { uncertain: "uncertain", neither: "neither class", foreign: "unlike training films" };

let model = null;
let films = [];
let current = null;
let filled = null; // whose verdict stands in the form
let order = { by: "probability", down: true };
let taken = 0;
let working = 0;
let lost = false;

const viewer = new Viewer($("film"));

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
  readFilm.heatmaps = model.heatmaps;
  $("model").textContent = `Model ${model.name}: ${model.labels.join(" or ")}, trained on ${model.training_films.toLocaleString("en")} films`;
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
  say($("outage"), "The service does not answer. Films that wait are kept here and read as soon as it is back.");
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

// ---- films come in ----

function take(files) {
  const chosen = [...files].filter((file) => !/^(\.|DICOMDIR$|Thumbs\.db$)/i.test(file.name));
  if (!chosen.length) return;
  for (const file of chosen) {
    const film = { key: taken++, file, name: file.path ?? (file.webkitRelativePath || file.name), invert: $("air-bright").checked, state: "waiting" };
    films.push(file.size ? film : { ...film, file: null, state: "error", error: "The file is empty." });
  }
  list();
  if (model) work();
  else if (!lost) begin(); // whoever let the token's question go is asked again
}

function work() {
  while (model && !lost && working < AT_ONCE) {
    const next = films.find((film) => film.state === "waiting");
    if (!next) break;
    next.state = "reading";
    working++;
    read(next).finally(() => { working--; work(); });
  }
  report();
}

async function read(film) {
  try {
    const answer = await readFilm(film.file, film.invert);
    const { view, heatmap, ...rest } = answer;
    Object.assign(film, rest, { name: film.name, state: "read", view: toBlob(view), heatmap: heatmap && { ...heatmap, png: toBlob(heatmap.png) } });
    film.file = null;
    if (!current) select(film);
  } catch (problem) {
    if (problem instanceof Lost) {
      film.state = "waiting";
      lose(work);
    } else {
      Object.assign(film, { state: "error", error: problem.message, file: null });
      if (!current) select(film);
    }
  }
  listSoon();
  if (current === film) select(film);
}

function report() {
  const left = films.filter((film) => film.state === "waiting" || film.state === "reading").length;
  const failed = films.filter((film) => film.state === "error").length;
  const done = films.length - left;
  $("clear").disabled = !films.length || (left > 0 && model !== null);
  $("export").disabled = !films.some((film) => film.state === "read");
  if (!films.length) { $("progress").textContent = ""; return; }
  const unlike = films.filter((film) => film.simulated && film.decision === "foreign").length;
  const hint = !left && unlike ? " Simulated films are unlike real ones: a model trained on those should say so." : "";
  const words = `${done - failed} of ${films.length} read${failed ? `, ${failed} not readable` : ""}${left ? "" : "."}${hint}`;
  if ($("progress").textContent !== words) $("progress").textContent = words;
}

async function entries(items) {
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((done, fail) => entry.file(done, fail));
      files.push(Object.assign(file, { path: entry.fullPath.replace(/^\//, "") })); // films of a study share their names
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
  films = [];
  current = filled = null;
  $("examples").disabled = false;
  $("reading").hidden = true;
  $("no-reading").hidden = $("nothing").hidden = false;
  $("no-reading").textContent = "What the model says of a film is shown here.";
  $("nothing").textContent = "No film yet. Drop one, or try a simulated film.";
  viewer.clear();
  list();
});
$("examples").addEventListener("click", async () => {
  $("examples").disabled = true;
  try {
    for (const { number, label } of await (await call("/v1/examples")).json()) {
      const picture = await (await call(`/v1/examples/${number}`)).blob();
      take([new File([picture], `simulated-${number + 1}-${label.toLowerCase()}.png`, { type: "image/png" })]);
      films.at(-1).simulated = true;
    }
  } catch (problem) {
    $("examples").disabled = false;
    if (problem instanceof Lost) lose(work);
    else $("progress").textContent = problem.message;
  }
});

// ---- the worklist ----

const chance = (film) => film.probability ?? null;
const wording = (film) => film.state === "read" ? SHOWN[film.decision] ?? film.decision : film.state === "error" ? "not readable" : "";

function chosen() {
  const kind = $("filter").value;
  const words = $("find").value.trim().toLowerCase();
  const fits = {
    "": () => true,
    positive: (film) => film.decision === model.positive,
    negative: (film) => model.labels.includes(film.decision) && film.decision !== model.positive,
    uncertain: (film) => ["uncertain", "neither"].includes(film.decision),
    foreign: (film) => film.decision === "foreign",
    error: (film) => film.state === "error",
    open: (film) => film.state === "read" && !film.verdict,
  }[kind];
  const value = { name: (film) => film.name, probability: chance, decision: wording }[order.by];
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.key - b.key; // without a probability: last
    const way = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return (order.down ? -way : way) || a.key - b.key;
  };
  return films.filter((film) => fits(film) && film.name.toLowerCase().includes(words)).sort(compare);
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
  if (films.length && !shown.length) {
    const row = document.createElement("tr");
    row.append(Object.assign(cell("No film fits."), { colSpan: 4 }));
    $("worklist").tBodies[0].replaceChildren(row);
    return report();
  }
  $("worklist").tBodies[0].replaceChildren(...shown.map((film) => {
    const row = document.createElement("tr");
    const name = document.createElement("td");
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: film.name });
    button.dataset.key = film.key;
    button.addEventListener("click", () => pick(film));
    name.append(button);
    if (film === current) row.setAttribute("aria-current", "true");
    row.addEventListener("click", (event) => { if (event.target !== button) pick(film); });
    const mark = cell(film.verdict ? (film.verdict === "agree" ? "✓" : "✗") : "");
    if (film.verdict) mark.setAttribute("aria-label", film.verdict === "agree" ? "agreed" : "disagreed");
    const waits = { waiting: "waits", reading: "…" }[film.state];
    row.append(name, cell(waits ?? (chance(film) === null ? "–" : chance(film).toFixed(3)), "number"), cell(wording(film), film.state === "error" ? "error" : ""), mark);
    return row;
  }));
  if (focused !== undefined) document.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
  report();
}

let due = false;
function listSoon() { // many films may be read within one frame
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
  const shown = chosen().filter((film) => film.state === "read" || film.state === "error");
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
  const columns = ["path", "probability", "decision", "call", "label_set", "novelty", "verdict", "reviewed_label", "note", "digest", "id", "model", "error"];
  const quote = (value) => {
    let words = value === null || value === undefined ? "" : String(value);
    if (/^[=+@\t\r]/.test(words) || (/^-/.test(words) && Number.isNaN(Number(words)))) words = `'${words}`; // no formula in a spreadsheet
    return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
  };
  const rows = chosen().filter((film) => film.state === "read" || film.state === "error").map((film) => [
    film.name, film.probability, film.decision, film.call, film.label_set?.join("|"), film.novelty, film.verdict, film.label, film.note, film.digest, film.id, film.model ?? model.name, film.error]);
  const text = [columns, ...rows].map((row) => row.map(quote).join(",")).join("\r\n");
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text, "\r\n"], { type: "text/csv" })), download: "worklist.csv" });
  link.click();
  URL.revokeObjectURL(link.href);
});

// ---- one film ----

function pick(film) {
  select(film);
  if (matchMedia("(max-width: 46rem)").matches) document.querySelector(".stage").scrollIntoView({ block: "start" });
}

function reveal(row) { // within its list; the page itself stays where it is
  const box = row.closest(".scroll");
  const head = box.querySelector("thead").offsetHeight;
  const [above, below] = [row.offsetTop - head - box.scrollTop, row.offsetTop + row.offsetHeight - box.clientHeight - box.scrollTop];
  if (above < 0) box.scrollTop += above;
  else if (below > 0) box.scrollTop += below;
}

function select(film) {
  if (filled !== film) keepDraft();
  current = film;
  for (const row of $("worklist").tBodies[0].rows) {
    const here = row.querySelector("[data-key]")?.dataset.key === String(film.key);
    if (here) { row.setAttribute("aria-current", "true"); reveal(row); } else row.removeAttribute("aria-current");
  }
  const read = film.state === "read";
  $("reading").hidden = !read;
  $("no-reading").hidden = read;
  $("nothing").hidden = read;
  if (!read) {
    const words = film.state === "error" ? `${film.name} cannot be read. ${film.error}` : `${film.name} waits to be read.`;
    $("no-reading").textContent = $("nothing").textContent = words;
    $("film").setAttribute("aria-label", words);
    viewer.clear();
    return;
  }
  if (film.view) {
    viewer.show(film.view, film.heatmap?.png).catch(() => {
      if (film === current) say($("nothing"), `${film.name} cannot be drawn by this browser.`);
    });
  } else {
    say($("nothing"), "The picture of an earlier read is not here any more. Drop the file again to see it.");
    viewer.clear();
  }
  const words = SHOWN[film.decision] ?? film.decision;
  $("decision").textContent = film.decision === "foreign" ? "Not like the training radiographs" : words[0].toUpperCase() + words.slice(1);
  $("words").textContent = film.words;
  $("chance").hidden = film.probability === null;
  if (film.probability !== null) {
    $("chance-label").textContent = `Probability of ${model.positive ?? film.call}`;
    $("probability").textContent = film.probability.toFixed(3);
    $("fill").style.width = `${100 * film.probability}%`;
    const marked = model.threshold !== null && (film.fingerprint ?? model.fingerprint) === model.fingerprint;
    $("threshold").hidden = !marked;
    $("threshold-label").textContent = !marked ? "" : `Mark: ${model.positive} is called from ${model.threshold.toFixed(3)} on.`;
    $("threshold").style.left = `${100 * (model.threshold ?? 0)}%`;
  }
  const facts = [["Film", film.name]];
  if (film.width) facts.push(["Size", `${film.width} × ${film.height}, ${film.format}`]);
  if (film.label_set.length && film.decision !== "foreign") facts.push(["Label set", film.label_set.join(" or ")]);
  if (film.novelty !== null) facts.push(["Novelty", `${film.novelty.toFixed(2)} (above 1: unlike training films)`]);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value })]));
  $("evidence").hidden = !film.heatmap;
  if (film.heatmap) {
    const { label, limit, logit, bias } = film.heatmap;
    $("against").textContent = (-limit).toFixed(1).replace("-", "−");
    $("for").textContent = `+${limit.toFixed(1)}`;
    $("legend-label").textContent = `Logits: yellow speaks for ${label}, blue against it. Their mean over what the network saw, and the bias of ${signed(bias)}, make the logit, ${signed(logit)}.`;
  }
  if (filled !== film) {
    filled = film;
    $("review").reset();
    $("reviewer").value = localStorage.getItem("reviewer") ?? "";
    $("kept").textContent = film.verdict ? `Kept: ${film.verdict}${film.label ? `, ${film.label}` : ""}.` : "";
    const { verdict, note, label } = film.draft ?? film;
    if (verdict) document.querySelector(`[name=verdict][value=${verdict}]`).checked = true;
    $("note").value = note ?? "";
    $("label").value = label ?? "";
    needLabel();
  }
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

function describeView() {
  const { film, level, window: width, scale } = viewer;
  $("level").value = 100 * level;
  $("window").value = 100 * width;
  $("invert").setAttribute("aria-pressed", String(viewer.inverted));
  $("evidence-shown").setAttribute("aria-pressed", String(viewer.evidence));
  $("evidence-shown").textContent = viewer.evidence ? "Shown" : "Hidden";
  if (!film || current?.state !== "read") {
    $("caption").textContent = "";
    $("film").setAttribute("aria-label", $("nothing").hidden ? "No film is shown." : $("nothing").textContent);
    return;
  }
  const zoom = Math.round((100 * scale * film.width) / current.width / (window.devicePixelRatio || 1));
  $("caption").textContent = `${current.name} · level ${Math.round(100 * level)} % · window ${Math.round(100 * width)} % · zoom ${zoom} %${viewer.inverted ? " · inverted" : ""}${viewer.map && !viewer.evidence ? " · evidence off" : ""}`;
  $("film").setAttribute("aria-label", `Film ${current.name}, ${current.words ?? ""}${viewer.inverted ? " Shown inverted." : ""}`);
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
  return films.filter((film) => film.draft);
}
addEventListener("beforeunload", (event) => { if (unkept().length || films.some((film) => film.file)) event.preventDefault(); });

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
  const film = filled;
  const button = event.submitter ?? $("review").querySelector("[type=submit]");
  button.disabled = true;
  const verdict = new FormData($("review")).get("verdict");
  localStorage.setItem("reviewer", $("reviewer").value);
  $("kept").textContent = "…";
  try {
    const body = JSON.stringify({ verdict, label: ($("label-row").hidden ? "" : $("label").value) || null, note: $("note").value, reviewer: $("reviewer").value });
    const kept = await (await call(`/v1/reads/${film.id}/verdicts`, { method: "POST", headers: { "Content-Type": "application/json" }, body })).json();
    Object.assign(film, { verdict: kept.verdict, label: kept.label, note: kept.note, draft: undefined });
    if (film === filled) {
      $("label").value = kept.label ?? "";
      $("kept").textContent = `Kept: ${kept.verdict}${kept.label ? `, ${kept.label}` : ""}.`;
    }
    list();
    listEarlier();
  } catch (problem) {
    const why = problem instanceof Lost ? "the service does not answer. Try again when it is back." : problem.message;
    if (film === filled) $("kept").textContent = `Not kept: ${why}`;
    else say($("outage"), `The verdict on ${film.name} is not kept: ${why}`);
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
  let film = films.find((one) => one.id === read.id);
  if (!film) {
    const last = read.verdicts.at(-1) ?? {};
    const words = `Read on ${new Date(read.at).toLocaleString()} by the model ${read.model}.`;
    const name = read.name || read.digest.slice(0, 12);
    film = { ...read, key: taken++, state: "read", name, words, view: null, heatmap: null, verdict: last.verdict, label: last.label, note: last.note };
    films.push(film);
    list();
  }
  pick(film);
}

viewer.changed = describeView;
begin();
