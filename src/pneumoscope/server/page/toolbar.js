// The tools beside the image, the window below it, and their keys. They work on the image that was touched last.

import { $ } from "./state.js";
import { recall, remember } from "./preferences.js";
import { format, measureSpan } from "./window_level.js";

const DRAGGED = ["window", "pan", "zoom", "lens", "ruler", "angle"];
const STEPS = { "[": ["width", 0.9], "]": ["width", 1 / 0.9], ",": ["centre", -0.02], ".": ["centre", 0.02] };
const TYPED = "input:not([type='radio'], [type='checkbox'], [type='range']), textarea, select, [contenteditable]";

export const tools = { current: recall("left", "window"), wheel: recall("wheel", "zoom"), chosen: false, space: false };
const panes = { active: null, all: () => [] };
const touched = () => panes.all().forEach((pane) => pane.gestures.describeTouch());

export function attachToolbar(active, all) { // which viewer the tools work on, and all of them
  Object.assign(panes, { active, all });
  document.documentElement.classList.toggle("bare", !recall("overlays", true));
  showTool();
  showOverlays();
}

function act(id, job) {
  $(id).addEventListener("click", () => { if (panes.active().picture) job(panes.active()); });
}

// ---- tools for dragging ----

function takeTool(name, chosen) {
  panes.all().forEach((pane) => pane.measuring.cancel());
  tools.chosen = chosen && !(tools.chosen && tools.current === name); // the same again: a finger scrolls the page
  tools.current = name;
  showTool();
}

function showTool() {
  for (const name of DRAGGED) $(`tool-${name}`).setAttribute("aria-pressed", String(name === tools.current));
  $("screens").dataset.tool = tools.current;
  $("screens").classList.toggle("chosen", tools.chosen);
  touched();
}

for (const name of DRAGGED) $(`tool-${name}`).addEventListener("click", () => takeTool(name, true));
$("left-drag").value = tools.current;
$("left-drag").addEventListener("change", (event) => {
  remember("left", event.target.value);
  takeTool(event.target.value, false);
});

$("wheel").value = tools.wheel;
$("wheel").addEventListener("change", (event) => {
  tools.wheel = event.target.value;
  remember("wheel", tools.wheel);
});

// ---- buttons ----

act("fit", (viewer) => viewer.fit());
act("actual", (viewer) => viewer.zoomTo(viewer.picture.facts.reduced));
act("zoom-in", (viewer) => viewer.zoom(1.25));
act("zoom-out", (viewer) => viewer.zoom(0.8));
act("invert", (viewer) => viewer.invert());
act("rotate", (viewer) => viewer.orient({ turns: viewer.turns + 1 }));
act("flip", (viewer) => viewer.flip());
act("flip-vertical", (viewer) => viewer.flipVertically());
act("reset", (viewer) => viewer.reset());
act("unmeasure", (viewer) => viewer.measuring.remove());

function showOverlays() {
  $("overlays").setAttribute("aria-pressed", String(!document.documentElement.classList.contains("bare")));
}
$("overlays").addEventListener("click", () => {
  remember("overlays", !document.documentElement.classList.toggle("bare"));
  showOverlays();
});

const stage = document.querySelector(".stage");
$("full").hidden = !stage.requestFullscreen;
$("full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : stage.requestFullscreen()).catch(() => {}));
document.addEventListener("fullscreenchange", () => $("full").setAttribute("aria-pressed", String(Boolean(document.fullscreenElement))));

// ---- window and level ----

for (const [id, part] of [["window", "width"], ["level", "centre"]]) {
  $(id).addEventListener("change", (event) => {
    const value = event.target.valueAsNumber;
    if (Number.isFinite(value) && (part !== "width" || value > 0)) panes.active().set({ [part]: value });
    else showWindow(panes.active());
  });
}
$("preset").addEventListener("change", (event) => panes.active().choose(Number(event.target.value)));

function showWindow({ picture, setting, presets }) {
  for (const id of ["window", "level", "preset"]) $(id).disabled = !picture;
  if (!picture) {
    $("window").value = $("level").value = "";
    return $("preset").replaceChildren(new Option("none"));
  }
  const span = measureSpan(picture.facts);
  $("window").value = format(setting.width, span);
  $("level").value = format(setting.centre, span);
  const chosen = presets.findIndex(({ name }) => name === setting.name);
  const options = presets.map(({ name, centre, width }, i) => new Option(`${name} (${format(width, span)}, ${format(centre, span)})`, i));
  if (chosen < 0) options.push(new Option("Own", -1));
  $("preset").replaceChildren(...options);
  $("preset").value = String(chosen);
}

export function describeTools(viewer) {
  showWindow(viewer);
  $("invert").setAttribute("aria-pressed", String(viewer.inverted));
  $("flip").setAttribute("aria-pressed", String(viewer.flipped && viewer.turns === 0));
  $("flip-vertical").setAttribute("aria-pressed", String(viewer.flipped && viewer.turns === 2));
  touched();
}

// ---- keys ----

const buttons = [...$("rail").querySelectorAll("button")];
const byKey = new Map(buttons.map((button) => [button.dataset.key.toLowerCase(), button]));
byKey.set("=", $("zoom-in"));

function press(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.(`${TYPED}, dialog`) || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  const viewer = panes.active();
  if (key === " ") {
    tools.space = true;
    if (event.target === document.body || event.target.tagName === "CANVAS") event.preventDefault();
    return;
  }
  if (key === "escape") {
    if (!panes.all().some((pane) => pane.measuring.cancel())) takeTool(recall("left", "window"), false);
    return;
  }
  if (key.length === 1 && $("letters")?.checked === false) return; // single keys are turned off (WCAG 2.1.4)
  const preset = event.shiftKey && /^Digit([1-9])$/.exec(event.code);
  const button = !preset && byKey.get(key);
  if (button) button.click();
  else if (STEPS[key] && viewer.picture) {
    const [part, by] = STEPS[key];
    const { setting } = viewer;
    viewer.set({ [part]: part === "width" ? setting.width * by : setting.centre + by * measureSpan(viewer.picture.facts) });
  } else if (preset) viewer.choose(Number(preset[1]) - 1);
  else return;
  event.preventDefault();
}
document.addEventListener("keydown", press);
document.addEventListener("keyup", (event) => { if (event.key === " ") tools.space = false; });
addEventListener("blur", () => { tools.space = false; });

// One tab stop for all tools; the arrows go through them.
buttons[0].tabIndex = 0;
$("rail").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const shown = buttons.filter((button) => !button.hidden);
  shown[(shown.indexOf(document.activeElement) + step + shown.length) % shown.length].focus();
});
$("rail").addEventListener("focusin", (event) => {
  for (const button of buttons) button.tabIndex = button === event.target ? 0 : -1;
});
