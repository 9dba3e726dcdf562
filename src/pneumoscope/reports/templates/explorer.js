"use strict";
(() => {
  const root = document.getElementById("explorer");
  const data = JSON.parse(root.dataset.points);
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const [threshold, stop, percent] = ["threshold", "stop", "percent"].map(part);
  const start = { point: data.start, stop: Number(stop.value), prevalence: data.prevalences[stop.value] };
  let prevalence = start.prevalence;

  const number = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");
  const plain = (value) => String(Number(value.toFixed(4)));
  const show = (name, text) => { part(name).textContent = text; };

  // Wilson (1927)
  const interval = (count, n) => {
    const z = data.z, share = count / n, under = 1 + z * z / n;
    const centre = share + z * z / (2 * n);
    const reach = z * Math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2);
    return `${number(Math.max(0, (centre - reach) / under))} to ${number(Math.min(1, (centre + reach) / under))}`;
  };

  const update = () => {
    const i = Number(threshold.value);
    const hits = data.tp[i], rejected = data.negatives - data.fp[i];
    const sensitivity = hits / data.positives, specificity = rejected / data.negatives;
    const tp = sensitivity * prevalence, fp = (1 - specificity) * (1 - prevalence);
    const fn = (1 - sensitivity) * prevalence, tn = specificity * (1 - prevalence);
    const mark = i === data.start ? ` (${data.mark})` : "";
    const shown = plain(data.thresholds[i]), share = `${plain(100 * prevalence)}%`;
    show("sensitivity", number(sensitivity));
    show("sensitivity-interval", interval(hits, data.positives));
    show("specificity", number(specificity));
    show("specificity-interval", interval(rejected, data.negatives));
    show("ppv", number(tp / (tp + fp)));
    show("npv", number(tn / (tn + fn)));
    show("threshold-value", shown + mark);
    show("prevalence-value", share);
    threshold.setAttribute("aria-valuetext", shown + mark);
    stop.setAttribute("aria-valuetext", share);

    const sick = Math.round(1000 * prevalence), detected = Math.round(sick * sensitivity);
    const alarms = Math.round((1000 - sick) * (1 - specificity));
    const counts = { detected, missed: sick - detected, alarms, cleared: 1000 - sick - alarms };
    for (const [name, count] of Object.entries(counts)) {
      part(`bar-${name}`).style.flexGrow = count;
      show(name, count);
    }
    part("reset").disabled = i === start.point && prevalence === start.prevalence;
  };

  const nearest = () => data.prevalences.reduce(
    (best, each, i) => (Math.abs(each - prevalence) < Math.abs(data.prevalences[best] - prevalence) ? i : best), 0);

  threshold.addEventListener("input", update);
  stop.addEventListener("input", () => {
    prevalence = data.prevalences[stop.value];
    percent.value = plain(100 * prevalence);
    update();
  });
  percent.addEventListener("input", () => {
    const typed = Number(percent.value) / 100;
    if (!(typed > 0 && typed < 1)) return;
    prevalence = typed;
    stop.value = nearest();
    update();
  });
  percent.addEventListener("change", () => { percent.value = plain(100 * prevalence); });
  part("reset").addEventListener("click", () => {
    threshold.value = start.point;
    stop.value = start.stop;
    prevalence = start.prevalence;
    percent.value = plain(100 * prevalence);
    update();
    threshold.focus();
  });
  document.documentElement.classList.add("live");
  update();
})();
