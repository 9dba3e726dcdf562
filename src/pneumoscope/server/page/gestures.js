// What the mouse, fingers and keys do to an image, as in the viewers of hospitals: the left button works the tool, the
// middle one (or space) moves, the right one and the wheel zoom. One finger scrolls the page, unless the image is zoomed.

import { measureSpan } from "./window_level.js";

const DRAGS = {
  window(viewer, x, y) {
    const { setting, canvas } = viewer;
    const span = Math.max(measureSpan(viewer.picture.facts) / 4, Math.min(setting.width, measureSpan(viewer.picture.facts)));
    viewer.set({ width: setting.width + (x / canvas.clientWidth) * span, centre: setting.centre + (y / canvas.clientHeight) * span });
  },
  pan: (viewer, x, y, ratio) => viewer.pan(x * ratio, y * ratio),
  zoom: (viewer, x, y, ratio, start) => viewer.zoom(Math.exp(-y * 0.006), start),
};

export class Gestures {
  constructor(viewer, tools) {
    this.viewer = viewer;
    this.tools = tools; // { current, chosen, space }: shared by all images of the page
    this.pointers = new Map();
    const { canvas, watching: { signal } } = viewer;
    const on = (name, job, options) => canvas.addEventListener(name, job, { signal, ...options });
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("dblclick", () => { if (!["ruler", "angle"].includes(tools.current)) viewer.fit(); });
    on("contextmenu", (event) => event.preventDefault());
    on("auxclick", (event) => event.preventDefault());
    on("mousedown", (event) => { if (event.button === 1) event.preventDefault(); }); // no scrolling by the middle button
    on("pointerdown", (event) => this.press(event));
    on("pointermove", (event) => this.move(event));
    on("pointerleave", () => this.hideLens());
    for (const end of ["pointerup", "pointercancel"]) on(end, (event) => this.release(event));
    on("keydown", (event) => this.key(event));
  }

  // Whether a finger belongs to the image; else the browser scrolls the page with it.
  describeTouch() {
    const { viewer, tools } = this;
    const own = viewer.picture && (tools.chosen || !viewer.isFitted());
    viewer.canvas.style.touchAction = own ? "none" : "pan-x pan-y";
  }

  place(event) {
    const { ratio } = this.viewer;
    return [event.offsetX * ratio, event.offsetY * ratio];
  }

  wheel(event) {
    const turning = this.tools.wheel === "images" && !event.ctrlKey;
    const inStudy = turning && !document.getElementById("strip").hidden; // the wheel works while an image is loading
    if (!inStudy && !this.viewer.picture) return;
    event.preventDefault();
    if (turning) return this.turn(event.deltaY * (event.deltaMode ? 40 : 1));
    this.viewer.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), this.place(event));
  }

  turn(way) { // to the next image of the study, or the one before: a touchpad sends many small steps
    this.turned = Math.sign(way) === Math.sign(this.turned ?? 0) ? this.turned + way : way;
    if (Math.abs(this.turned) < 60) return;
    this.turned = 0;
    document.dispatchEvent(new CustomEvent("turned", { detail: { by: Math.sign(way), second: this.viewer.root.id === "screen-2" } }));
  }

  press(event) {
    const { viewer, tools } = this;
    if (!viewer.picture) return;
    viewer.canvas.setPointerCapture(event.pointerId);
    viewer.canvas.focus({ preventScroll: true });
    const at = this.place(event);
    this.pointers.set(event.pointerId, { at, start: at });
    if (this.pointers.size > 1) {
      this.drag = null;
      viewer.measuring.cancel();
      return;
    }
    this.drag = this.findDrag(event);
    if (viewer.measuring.find(at) && this.drag === tools.current && event.button === 0) this.drag = "ruler"; // its end is grasped
    if (["ruler", "angle"].includes(this.drag)) viewer.measuring.press(at, this.drag);
    if (this.drag === "lens") this.showLens(at);
  }

  findDrag(event) {
    const { viewer, tools } = this;
    if (event.pointerType === "touch" && !tools.chosen) return viewer.isFitted() ? null : "pan"; // else the page scrolls
    if (event.button === 1 || tools.space) return "pan";
    if (event.button === 2) return "zoom";
    return event.shiftKey ? (tools.current === "window" ? "pan" : "window") : tools.current;
  }

  move(event) {
    const { viewer } = this;
    const pointer = this.pointers.get(event.pointerId);
    const at = this.place(event);
    if (!pointer) {
      if (viewer.measuring.pending) viewer.measuring.move(at);
      else if (this.tools.current === "lens" && viewer.picture && event.pointerType === "mouse") this.showLens(at);
      return;
    }
    const { at: before } = pointer;
    pointer.at = at;
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, at);
    else if (this.drag === "lens") this.showLens(at);
    else if (["ruler", "angle"].includes(this.drag)) viewer.measuring.move(at);
    else if (this.drag) DRAGS[this.drag](viewer, (at[0] - before[0]) / viewer.ratio, (at[1] - before[1]) / viewer.ratio, viewer.ratio, pointer.start);
  }

  pinch(id, before, now) {
    const other = [...this.pointers].find(([each]) => each !== id)[1].at;
    const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    this.viewer.zoom(apart(now, other) / Math.max(1, apart(before, other)), [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
    this.viewer.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  }

  release(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (["ruler", "angle"].includes(this.drag)) this.viewer.measuring.release();
    if (event.pointerType !== "mouse") this.hideLens();
    this.drag = null;
  }

  showLens(at) {
    this.viewer.lens = at;
    this.viewer.draw();
  }

  hideLens() {
    if (!this.viewer.lens) return;
    this.viewer.lens = null;
    this.viewer.draw();
  }

  key(event) { // the arrows belong to the image only while it has the focus
    const step = 40 * this.viewer.ratio;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.viewer.pan(...moves[event.key]);
  }
}
