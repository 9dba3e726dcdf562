// Shares over time, and by groups of images, with their intervals.

import { make } from "./elements.js";

const KINDS = { positive: "Positive", uncertain: "Uncertain", out_of_distribution: "Out of distribution" };
const GROUPS = { view: "View", age: "Age in years", sex: "Sex", model_group: "Group of the model", format: "File format" };
const DAY = 86400000;

export const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)}%`);
export const interval = (share) => (share.low === null ? "" : `${percent(share.low)} to ${percent(share.high)}`);
const period = (part) => (part.first_day === part.last_day ? part.first_day : `${part.first_day} to ${part.last_day}`);
const describe = (share) => (share.n ? `${percent(share.value)}, ${interval(share)}` : "–");

function draw(series, kind, days, width) {
  const [high, left, bottom] = [120, 38, 20];
  const wide = Math.max(220, width);
  const chart = make("svg", { class: "chart", viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": `${KINDS[kind]}: shares with 95% intervals over ${days} days; the numbers are in the table below` });
  const parts = series.filter((part) => part.shares[kind].n);
  const most = Math.min(1, Math.max(0.05, ...parts.map((part) => part.shares[kind].high)));
  const first = Date.now() - (days - 1) * DAY;
  const start = Date.parse(new Date(first).toISOString().slice(0, 10));
  const x = (day) => left + 6 + ((Date.parse(day) - start) / DAY + 0.5) / days * (wide - left - 12);
  const y = (value) => high - bottom - (value / most) * (high - bottom - 12);
  for (const value of [0, most / 2, most]) {
    chart.append(make("line", { class: "axis", x1: left, x2: wide, y1: y(value), y2: y(value) }));
    chart.append(make("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, percent(value)));
  }
  for (const part of parts) {
    const share = part.shares[kind];
    const middle = (x(part.first_day) + x(part.last_day)) / 2;
    const mark = make("path", { class: "interval", d: `M${middle} ${y(share.low)} V${y(share.high)} M${x(part.first_day) - 3} ${y(share.value)} H${x(part.last_day) + 3}` });
    const point = make("rect", { class: "bars", x: middle - 3, y: y(share.value) - 3, width: 6, height: 6 });
    for (const each of [mark, point]) each.append(make("title", {}, `${period(part)}: ${describe(share)}, of ${share.n} images`));
    chart.append(mark, point);
  }
  const last = new Date(start + (days - 1) * DAY).toISOString().slice(0, 10);
  chart.append(make("text", { x: left, y: high - 4 }, new Date(start).toISOString().slice(5, 10)));
  if (days > 1) chart.append(make("text", { x: wide, y: high - 4, "text-anchor": "end" }, last.slice(5)));
  return chart;
}

function addShare(row, share, label, n = "") {
  const cell = make("td", { class: "number", "data-label": label });
  cell.append(make("strong", {}, percent(share.value)), make("span", { class: "quiet" }, share.n ? ` ${interval(share)}${n}` : ""));
  row.append(cell);
}

function fill(row, entry) {
  row.append(make("td", { class: "number", "data-label": "Images" }, String(entry.images)));
  for (const [kind, name] of Object.entries(KINDS)) addShare(row, entry.shares[kind], name);
}

export function showSeries(charts, table, { series, days }) {
  const width = Math.min(1000, Math.floor(charts.clientWidth / (charts.clientWidth < 700 ? 1 : 3)) - 12);
  charts.replaceChildren(...Object.entries(KINDS).map(([kind, name]) => {
    const figure = make("figure", { class: "small" });
    figure.append(make("figcaption", {}, name), draw(series, kind, days, width));
    return figure;
  }));
  table.replaceChildren(...[...series].reverse().map((part) => {
    const row = make("tr");
    row.append(make("th", { scope: "row" }, period(part)));
    fill(row, part);
    return row;
  }));
}

export function showGroups(table, groups) {
  table.querySelectorAll("tbody").forEach((body) => body.remove());
  for (const [kind, name] of Object.entries(GROUPS)) {
    if (!groups[kind].length) continue;
    const body = make("tbody");
    const head = make("tr", { class: "kind" });
    head.append(make("th", { scope: "rowgroup", colspan: 6 }, name));
    body.append(head);
    for (const group of groups[kind]) {
      const row = make("tr");
      row.append(make("th", { scope: "row", class: "member" }, group.name));
      fill(row, group);
      addShare(row, group.agreement, "Reviews agree", group.agreement.n ? `, of ${group.agreement.n}` : "");
      body.append(row);
    }
    table.append(body);
  }
}
