// The ruler and the angle: they are drawn on the image and stay with it.

import { PLANES } from "./overlays.js";

const POINTS = { ruler: 2, angle: 3 };
const NEAR = 10; // CSS pixels within which an end is grasped

export class Measuring {
  constructor(viewer) {
    this.viewer = viewer;
    this.items = []; // { kind, points } in pixels of the picture
    this.pending = this.grasped = null;
    this.changed = null; // called when something was measured, moved or removed
  }

  show(items) {
    this.items = items;
    this.pending = this.grasped = null;
  }

  press(at, kind) {
    this.grasped = this.pending ? null : this.find(at);
    if (this.grasped) return;
    if (this.pending) this.pending.points[this.pending.points.length - 1] = this.viewer.toImage(at);
    else this.pending = { kind, points: [this.viewer.toImage(at), this.viewer.toImage(at)] };
    this.viewer.draw();
  }

  move(at) {
    const point = this.viewer.toImage(at);
    if (this.grasped) this.grasped.item.points[this.grasped.index] = point;
    else if (this.pending) this.pending.points[this.pending.points.length - 1] = point;
    else return;
    this.viewer.draw();
  }

  release() {
    if (this.grasped) this.changed?.();
    this.grasped = null;
    if (!this.pending) return;
    const { kind, points } = this.pending;
    const [before, last] = points.slice(-2).map((point) => this.viewer.toCanvas(point));
    if (Math.hypot(before[0] - last[0], before[1] - last[1]) < 4 * this.viewer.ratio) return; // a click: the next one ends it
    if (points.length < POINTS[kind]) points.push([...points.at(-1)]);
    else {
      this.items.push(this.pending);
      this.pending = null;
      this.changed?.();
    }
    this.viewer.draw();
    this.viewer.tell();
  }

  cancel() {
    const had = Boolean(this.pending);
    this.pending = null;
    if (had) this.viewer.draw();
    return had;
  }

  remove(all = false) {
    if (!this.cancel()) {
      this.items.splice(all ? 0 : -1);
      this.changed?.();
    }
    this.viewer.draw();
    this.viewer.tell();
  }

  find(at) {
    for (const item of this.items) {
      const index = item.points.findIndex((point) => {
        const [x, y] = this.viewer.toCanvas(point);
        return Math.hypot(x - at[0], y - at[1]) < NEAR * this.viewer.ratio;
      });
      if (index >= 0) return { item, index };
    }
    return null;
  }

  draw(pen) {
    const { ratio } = this.viewer;
    pen.lineCap = pen.lineJoin = "round";
    pen.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    for (const item of [...this.items, ...(this.pending ? [this.pending] : [])]) {
      const points = item.points.map((point) => this.viewer.toCanvas(point));
      for (const [colour, width] of [["#000b", 4], ["#ffd84d", 1.6]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width * ratio;
        pen.beginPath();
        points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        for (const [x, y] of points) {
          pen.moveTo(x + 4 * ratio, y);
          pen.arc(x, y, 4 * ratio, 0, 2 * Math.PI);
        }
        pen.stroke();
      }
      this.write(pen, describe(item, this.viewer.picture.facts), points.at(item.kind === "angle" && points.length === 3 ? 1 : -1));
    }
  }

  write(pen, words, [x, y]) {
    const { ratio, canvas } = this.viewer;
    const width = pen.measureText(words).width;
    const left = Math.min(Math.max(x + 12 * ratio, 4 * ratio), canvas.width - width - 8 * ratio);
    const top = Math.min(Math.max(y + 14 * ratio, 14 * ratio), canvas.height - 14 * ratio);
    pen.fillStyle = "#000a";
    pen.fillRect(left - 4 * ratio, top - 10 * ratio, width + 8 * ratio, 20 * ratio);
    pen.fillStyle = "#ffe27a";
    pen.fillText(words, left, top);
  }
}

// The length in mm where the file says how far pixels are apart, else in pixels; or the angle at the middle point.
export function describe({ kind, points }, facts) {
  const { spacing, aspect, reduced } = facts;
  const [across, down] = spacing ? [spacing.columns * reduced, spacing.rows * reduced] : [reduced, reduced * aspect];
  const apart = (a, b) => [(b[0] - a[0]) * across, (b[1] - a[1]) * down];
  if (kind === "angle" && points.length === 3) {
    const [one, other] = [apart(points[1], points[0]), apart(points[1], points[2])];
    const turn = Math.atan2(one[1], one[0]) - Math.atan2(other[1], other[0]);
    const degrees = Math.abs((turn * 180) / Math.PI) % 360;
    return `${Math.min(degrees, 360 - degrees).toFixed(1)}°`;
  }
  if (kind === "angle") return "";
  const length = Math.hypot(...apart(points[0], points[1]));
  if (!spacing) return `${Math.round(length)} pixels (no spacing in the file)`;
  return `${length.toFixed(1)} mm${PLANES[spacing.plane]}`;
}
