// Whether the model in use still works as intended.

import { card, make } from "./elements.js";
import { showComparison } from "./comparison.js";
import { call } from "./service.js";
import "./terms.js";
import { interval, percent, showGroups, showSeries } from "./trends.js";

const $ = (id) => document.getElementById(id);

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

function makeCoefficient({ value, low, high }) {
  const cell = make("td", { class: "number" }, value === null ? "–" : value.toFixed(2));
  if (low !== null) cell.append(make("br"), `${low.toFixed(2)} to ${high.toFixed(2)}`);
  return cell;
}

function showReaders({ pairs, fleiss, alpha, unnamed }) {
  const rows = pairs.map((pair) => [`Cohen's kappa: ${pair.first}, ${pair.second}`, pair]);
  if (fleiss?.images) rows.push(["Fleiss' kappa: images that all have reviewed", fleiss]);
  if (alpha.images) rows.push(["Krippendorff's alpha: all images with two reviews", alpha]);
  $("readers").replaceChildren(...rows.map(([what, found]) => {
    const row = make("tr");
    row.append(make("th", { scope: "row" }, what), make("td", { class: "number" }, String(found.images)), make("td", { class: "number" }, percent(found.agreed)), makeCoefficient(found));
    return row;
  }));
  $("no-readers").hidden = rows.length > 0;
  $("unnamed").textContent = unnamed ? `${unnamed} ${unnamed === 1 ? "review without a name does" : "reviews without a name do"} not count.` : "";
}

async function show() {
  let summary;
  try {
    const [model] = await (await call("v1/models")).json();
    $("model").textContent = `Model ${model.name}, ${model.fingerprint.slice(0, 12)}`;
    summary = await (await call(`v1/monitoring?days=${$("days").value}`)).json();
    showReaders(await (await call(`v1/agreement?days=${$("days").value}`)).json());
  } catch (problem) {
    $("state").textContent = problem.message;
    return;
  }
  const { predictions, summarised, of_this_model: counted } = summary;
  const parts = [`${predictions} predictions`];
  if (predictions > summarised) parts.push(`only the latest ${summarised} are summarised`);
  if (summary.summarised_reviews === 50000) parts.push("only the latest 50000 reviews are summarised");
  if (summarised > counted) parts.push(`${summarised - counted} by other models are left out below`);
  $("state").textContent = parts.join("; ");
  showCards(summary);
  const volume = days(summary.per_day, summary.days);
  $("volume").replaceChildren(draw(volume.map(([, count]) => count), null, volume.map(([day]) => day.slice(5)), `Predictions per day; ${predictions} in total`));
  showSeries($("trends"), $("parts"), summary);
  showGroups($("groups"), summary.groups);
  $("pooled").textContent = summary.min_pooled;
  showComparison($("comparison"), summary.second_model);
  showDrift(summary.drift);
  showOodDrift(summary.ood_drift);
  $("agreement").replaceChildren(...Object.entries(summary.agreement).map(([name, share]) => {
    const row = make("tr");
    row.append(make("th", { scope: "row" }, name.replaceAll("_", " ")), make("td", { class: "number" }, String(share.n)), make("td", { class: "number" }, percent(share.value)), make("td", { class: "number" }, interval(share)));
    return row;
  }));
}

function showCards({ days, predictions, images, shares, ood_score: ood, agreement, unreadable, unreadable_reasons: reasons }) {
  const { positive, uncertain, out_of_distribution: outside } = shares;
  $("cards").replaceChildren(
    card("Images", String(images), `${days > 1 ? `in ${days} days (UTC)` : "today (UTC)"}${predictions === images ? "" : `; ${predictions} predictions`}`),
    card("Positive", percent(positive.value), positive.n ? `of ${positive.n} in distribution; ${interval(positive)}` : ""),
    card("Uncertain", percent(uncertain.value), interval(uncertain)),
    card("Out of distribution", percent(outside.value), interval(outside)),
    card("Unreadable files", percent(unreadable.value), unreadable.value ? `of ${unreadable.n}; ${interval(unreadable)}; ${Object.entries(reasons).map(([code, files]) => `${files} ${code.replaceAll("-", " ")}`).join(", ")}` : ""),
    card("OOD score", ood ? ood.median.toFixed(2) : "–", ood ? `median; 95th percentile ${ood.p95.toFixed(2)}` : ""),
    card("Agreement", percent(agreement.all.value), agreement.all.n ? `${agreement.all.n} reviewed, without “cannot tell”; ${interval(agreement.all)}` : "no reviews"),
  );
}

function showDrift(drift) {
  if (!drift) {
    $("drift").textContent = "This model has no validation probabilities.";
    return;
  }
  const toShares = (counts) => { const total = counts.reduce((a, b) => a + b, 0) || 1; return counts.map((count) => count / total); };
  const bins = drift.current.map((_, i) => `${i / 10}–${(i + 1) / 10}`);
  $("histogram").replaceChildren(draw(toShares(drift.current), toShares(drift.validation), bins, "Distribution of probabilities now and on validation images"));
  $("drift").textContent = drift.psi === null
    ? `${drift.images} images are too few to measure drift; at least ${drift.min_images} are needed.`
    : `${tell(drift)} A different prevalence also shows as drift.`;
}

const tell = (drift) => `Population stability index: ${drift.psi.toFixed(2)}. By chance alone it stays below ${drift.psi_by_chance.toFixed(2)} 95 times in 100, if each image is of a different patient; above 0.25 counts as a change. Kolmogorov-Smirnov distance: ${drift.ks_distance.toFixed(2)}.`;

function showOodDrift(drift) {
  $("ood").textContent = drift && drift.psi !== null ? `OOD scores of ${drift.images} images against those of the validation images: ${tell(drift)}` : "";
}

$("days").addEventListener("change", show);
show();
