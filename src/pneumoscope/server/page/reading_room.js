// The reading room: images are added here, and sent to the service a few at a time.

import { openEarlier } from "./earlier.js";
import { clearImage, select } from "./image.js";
import { lose, outage, recover } from "./outage.js";
import { hasDrafts } from "./review.js";
import { call, Lost, predict, toBlob } from "./service.js";
import { $, announce, nextKey, say, state } from "./state.js";
import { listSoon } from "./worklist.js";

const AT_ONCE = 4;
let sending = 0;

async function start() {
  let model;
  try {
    [model] = await (await call("v1/models")).json();
    recover();
  } catch (problem) {
    if (problem instanceof Lost) return lose(start);
    return say($("outage"), problem.message);
  }
  state.model = model;
  $("model").textContent = `Model ${model.name}: ${model.labels.join(" or ")}, trained on ${model.training_images.toLocaleString("en")} images`;
  $("label").replaceChildren(new Option("choose", ""), ...model.labels.map((label) => new Option(label, label)));
  for (const option of $("filter").options) {
    if (option.value === "positive") option.textContent = model.positive ?? "";
    if (option.value === "negative") option.textContent = model.labels.find((label) => label !== model.positive);
    option.hidden = !model.positive && ["positive", "negative"].includes(option.value);
  }
  $("scale").style.background = `linear-gradient(to right, ${model.colours.join(", ")}), linear-gradient(#666, #666)`;
  openEarlier();
  work();
}

// ---- adding images ----

function add(files) {
  const images = [...files].filter((file) => !/^(\.|DICOMDIR$|Thumbs\.db$)/i.test(file.name)).map((file) => ({
    key: nextKey(), name: file.path ?? (file.webkitRelativePath || file.name), invert: $("inverted").checked,
    ...(file.size ? { file, state: "waiting" } : { state: "error", error: "The file is empty." }),
  }));
  if (!images.length) return [];
  state.images.push(...images);
  listSoon();
  if (state.model) work();
  else if (!outage.lost) start(); // asks again for a token whose dialog was dismissed
  return images;
}

function work() {
  while (state.model && !outage.lost && sending < AT_ONCE) {
    const next = state.images.find((image) => image.state === "waiting");
    if (!next) break;
    next.state = "sent";
    sending++;
    send(next).finally(() => { sending--; work(); });
  }
  listSoon();
}

async function send(image) {
  try {
    const { picture, heatmap, reviews, ...prediction } = await predict(image.file, image.invert, state.model.heatmaps);
    Object.assign(image, prediction, { name: image.name, state: "done", file: null });
    Object.assign(image, { picture: toBlob(picture), heatmap: heatmap && { ...heatmap, png: toBlob(heatmap.png) } });
  } catch (problem) {
    if (problem instanceof Lost) {
      image.state = "waiting";
      lose(work);
    } else Object.assign(image, { state: "error", error: problem.message, file: null });
  }
  if (image === state.current || (!state.current && image.state !== "waiting")) select(image);
}

async function listEntries(items) { // the files of dropped folders
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((done, fail) => entry.file(done, fail));
      files.push(Object.assign(file, { path: entry.fullPath.replace(/^\//, "") })); // images of a study share their names
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) break;
      for (const each of some) await walk(each);
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
  const plain = [...event.dataTransfer.files];
  const files = await listEntries([...event.dataTransfer.items].filter((item) => item.kind === "file"));
  add(files.length ? files : plain);
});
for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
document.addEventListener("paste", (event) => add(event.clipboardData.files));

$("examples").addEventListener("click", async () => {
  $("examples").disabled = true;
  try {
    for (const { number, label } of await (await call("v1/examples")).json()) {
      const picture = await (await call(`v1/examples/${number}`)).blob();
      const [image] = add([new File([picture], `simulated-${number + 1}-${label.toLowerCase()}.png`, { type: "image/png" })]);
      image.simulated = true;
    }
  } catch (problem) {
    $("examples").disabled = false;
    if (problem instanceof Lost) lose(work);
    else $("progress").textContent = problem.message;
  }
});

$("clear").addEventListener("click", () => {
  if (hasDrafts() && !confirm("Some reviews are not saved. Clear the list anyway?")) return;
  state.images = [];
  $("examples").disabled = false;
  clearImage();
  announce("listed");
});
addEventListener("beforeunload", (event) => { if (hasDrafts() || state.images.some((image) => image.file)) event.preventDefault(); });

start();
