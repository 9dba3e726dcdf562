// Whether the model in use still sees what it was made for.

import { call } from "/page/service.js";

const $ = (id) => document.getElementById(id);
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`);
const limits = (share) => (share.low === null ? "" : `${percent(share.low)} to ${percent(share.high)}`);

function make(tag, attributes = {}, words = "") {
  const made = tag === "svg" || make.drawn.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (words) made.textContent = words;
  return made;
}
make.drawn = new Set(["rect", "text", "path", "line", "title"]);

function card(name, value, below) {
  const made = make("section", { class: "card" });
  made.append(make("h2", {}, name), make("strong", {}, value), make("p", { class: "quiet" }, below));
  return made;
}

function draw(bars, outline, labels, what) {
  const [wide, high, left, bottom] = [Math.max(260, Math.min(1000, $("volume").clientWidth)), 180, 38, 22];
  const chart = make("svg", { class: "chart", viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": what });
  const most = Math.max(...bars, ...(outline ?? [0]), 1e-9);
  const step = (wide - left) / bars.length;
  const y = (value) => high - bottom - (value / most) * (high - bottom - 14);
  bars.forEach((value, i) => {
    const bar = make("rect", { class: "bars", x: left + i * step + 1, y: y(value), width: Math.max(1, step - 2), height: high - bottom - y(value) });
    bar.append(make("title", {}, `${labels[i]}: ${outline ? percent(value) : value}`));
    chart.append(bar);
  });
  if (outline) chart.append(make("path", { class: "outline", d: outline.map((value, i) => `${i ? "L" : "M"}${left + i * step} ${y(value)} h${step}`).join(" ") }));
  chart.append(make("line", { class: "axis", x1: left, x2: wide, y1: high - bottom, y2: high - bottom }));
  chart.append(make("text", { x: left - 4, y: 16, "text-anchor": "end" }, outline ? percent(most) : String(most)));
  const every = Math.ceil(bars.length / (wide / 68));
  labels.forEach((label, i) => { if (i % every === 0) chart.append(make("text", { x: left + (i + 0.5) * step, y: high - 6, "text-anchor": "middle" }, label)); });
  return chart;
}

function days(volume, count) {
  const list = [];
  for (let i = count - 1; i >= 0; i--) {
    const day = new Date(Date.now() - i * 86400000).toISOString().slice(0, 10);
    list.push([day, volume[day] ?? 0]);
  }
  return list;
}

async function show() {
  let found;
  try {
    const model = (await (await call("/v1/models")).json())[0];
    $("model").textContent = `Model ${model.name}, ${model.fingerprint.slice(0, 12)}`;
    found = await (await call(`/v1/monitoring?days=${$("days").value}`)).json();
  } catch (problem) {
    $("state").textContent = problem.message;
    return;
  }
  const { shares, ood, scores, agreement } = found;
  const others = found.looked_at - found.of_this_model;
  const times = found.reads === found.images ? "" : `; ${found.reads} reads`;
  $("state").textContent = `${found.reads} reads${found.reads > found.looked_at ? `; what is below is about the latest ${found.looked_at} of them` : ""}${others ? `; ${others} of them by another model, left out below` : ""}`;
  $("cards").replaceChildren(
    card("Images", String(found.images), `${found.days > 1 ? `in ${found.days} days, UTC` : "today, UTC"}${times}`),
    card("Positive", percent(shares.positive.value), shares.positive.n ? `of ${shares.positive.n} like training images; ${limits(shares.positive)}` : ""),
    card("Uncertain", percent(shares.uncertain.value), limits(shares.uncertain)),
    card("Unlike training", percent(shares.ood.value), limits(shares.ood)),
    card("OODState", ood ? ood.median.toFixed(2) : "–", ood ? `median; 95th percentile ${ood.p95.toFixed(2)}, above 1 is ood` : ""),
    card("Agreement", percent(agreement.all.value), agreement.all.n ? `${agreement.all.n} reviewed; ${limits(agreement.all)}` : "nothing reviewed"),
  );
  const volume = days(found.volume, found.days);
  $("volume").replaceChildren(draw(volume.map(([, count]) => count), null, volume.map(([day]) => day.slice(5)), `Reads a day; ${found.reads} in all`));
  if (scores) {
    const share = (counts) => { const total = counts.reduce((a, b) => a + b, 0) || 1; return counts.map((count) => count / total); };
    $("scores").replaceChildren(draw(share(scores.now), share(scores.validation), scores.now.map((_, i) => `${i / 10}–${(i + 1) / 10}`), "Distribution of scores now and on validation images"));
    $("drift").textContent = scores.stability_index === null
      ? `${scores.images} images: fewer than ${scores.enough} tell little of a distribution.`
      : `Population stability index ${scores.stability_index.toFixed(2)}: with so many images, each of another patient, it stays below ${scores.stability_by_chance.toFixed(2)} 95 times in 100 where nothing has changed; above 0.25 is called a change. Largest distance of the two distributions: ${scores.largest_distance.toFixed(2)}. Another share of ill patients than among the validation images shows here, too.`;
  } else $("drift").textContent = "This model brings no scores of its validation images.";
  $("agreement").replaceChildren(...Object.entries(agreement).map(([name, one]) => {
    const row = make("tr");
    row.append(make("th", { scope: "row" }, name), make("td", { class: "number" }, String(one.n)), make("td", { class: "number" }, percent(one.value)), make("td", { class: "number" }, limits(one)));
    return row;
  }));
}

$("days").addEventListener("change", show);
show();
