// Shows an image at any window, size and turn, with evidence, measurements and words over it. A page may have several.

import { Measuring } from "./measuring.js";
import { fillOverlays } from "./overlays.js";
import { halve, readPicture } from "./picture.js";
import { listPresets, listShades, listValues, measureSpan } from "./window_level.js";

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const LENS = { radius: 120, zoom: 2.5 }; // CSS pixels, and times the zoom of the image

export class Viewer {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.pen = this.canvas.getContext("2d");
    this.sheet = new OffscreenCanvas(1, 1); // the visible part of the image, at the current window
    this.measuring = new Measuring(this);
    this.changed = null; // called when what is shown, or how, has changed
    this.opacity = 0.55;
    this.evidence = false;
    this.lens = null; // where the magnifier is, in pixels of the canvas
    this.turn = 0; // counts what was to be shown
    this.empty();
    this.watching = new AbortController(); // ends with this viewer, and so do its gestures
    this.sizing = new ResizeObserver(() => this.resize());
    this.sizing.observe(this.canvas);
    this.resize();
  }

  close() {
    this.sizing.disconnect();
    this.watching.abort();
  }

  get ratio() { return this.canvas.clientWidth ? this.canvas.width / this.canvas.clientWidth : 1; }

  empty() {
    Object.assign(this, { picture: null, image: null, map: null, presets: [], setting: null, inverted: false, turns: 0, flipped: false, scale: 1, centre: [0, 0], lens: null });
    this.measuring.show([]);
  }

  async show(image, blob, heatmap) {
    this.clear(); // no image is shown under the words of another
    const turn = this.turn;
    const [picture, map] = await Promise.all([readPicture(blob), heatmap ? createImageBitmap(heatmap) : null]);
    if (turn !== this.turn) return;
    this.image = image;
    this.picture = picture;
    this.map = map;
    this.sizes = [picture];
    this.values = listValues(picture.facts);
    this.presets = listPresets(picture.facts);
    this.measuring.show((image.measurements ??= []));
    this.silent = true; // until it is in its place
    this.reset();
    this.silent = false;
    this.tell();
  }

  clear() {
    this.turn++;
    this.empty();
    this.draw();
    this.tell();
  }

  tell() {
    if (this.silent) return;
    fillOverlays(this.root, this);
    this.changed?.(this);
  }

  // ---- window and level, in the units of the file ----

  reset() {
    if (!this.picture) return;
    Object.assign(this, { inverted: false, turns: 0, flipped: false });
    this.choose(0);
    this.fit();
  }

  choose(index) {
    if (this.presets[index]) this.set({ ...this.presets[index] });
  }

  set(values) { // centre, width, name and shape of the window
    if (!this.picture) return;
    const own = values.name ? {} : { name: "" }; // no longer that of a preset
    this.setting = { ...this.setting, ...values, ...own };
    const span = measureSpan(this.picture.facts);
    this.setting.width = clamp(this.setting.width, Math.min(span, 1) / 1000, 100 * Math.max(span, this.presets[0].width));
    this.develop();
  }

  invert() {
    this.inverted = !this.inverted;
    this.develop();
  }

  develop() {
    if (!this.picture) return;
    this.shades = listShades(this.values, this.picture.facts, this.setting, this.inverted);
    this.draw();
    this.tell();
  }

  // ---- place, size and turn ----

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    const fitted = !this.picture || this.isFitted();
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (fitted) this.fit();
    this.paint(); // at once: the canvas is empty now
  }

  get aspect() { return this.picture?.facts.aspect ?? 1; }

  isFitted() { return this.scale <= this.fitting() * (1 + 1e-9); }

  fitting() {
    if (!this.picture) return 1;
    const sides = [this.picture.width, this.picture.height * this.aspect];
    const [width, height] = this.turns % 2 ? sides.reverse() : sides;
    return Math.min(this.canvas.width / width, this.canvas.height / height);
  }

  fit() {
    if (!this.picture) return this.draw();
    this.scale = this.fitting();
    this.centre = [this.picture.width / 2, this.picture.height / 2];
    this.draw();
    this.tell();
  }

  zoomTo(scale, at = [this.canvas.width / 2, this.canvas.height / 2]) {
    if (!this.picture) return;
    const next = clamp(scale, this.fitting() / 4, Math.max(40, this.fitting()));
    const before = this.toImage(at);
    this.scale = next;
    const after = this.toImage(at);
    this.moveTo([this.centre[0] + before[0] - after[0], this.centre[1] + before[1] - after[1]]);
  }

  zoom(factor, at) { this.zoomTo(this.scale * factor, at); }

  pan(x, y) { // by pixels of the canvas
    if (!this.picture) return;
    const [from, to] = [this.toImage([0, 0]), this.toImage([x, y])];
    this.moveTo([this.centre[0] + from[0] - to[0], this.centre[1] + from[1] - to[1]]);
  }

  moveTo(centre) {
    this.centre = [clamp(centre[0], 0, this.picture.width), clamp(centre[1], 0, this.picture.height)];
    this.draw();
    this.tell();
  }

  orient(values) { // turns, clockwise, and flipped
    if (!this.picture) return;
    const fitted = this.isFitted();
    Object.assign(this, values);
    this.turns = (this.turns + 4) % 4;
    if (fitted) this.fit();
    this.draw();
    this.tell();
  }

  // What is on the screen is flipped, however it is turned: a flip turns the other way.
  flip() { this.orient({ flipped: !this.flipped, turns: -this.turns }); }

  flipVertically() { this.orient({ flipped: !this.flipped, turns: 2 - this.turns }); }

  matrix() { // from pixels of the picture to pixels of the canvas
    const [cos, sin] = [[1, 0], [0, 1], [-1, 0], [0, -1]][this.turns];
    const across = this.scale * (this.flipped ? -1 : 1), down = this.scale * this.aspect;
    const place = new DOMMatrix([cos * across, sin * across, -sin * down, cos * down, this.canvas.width / 2, this.canvas.height / 2]);
    return place.translate(-this.centre[0], -this.centre[1]);
  }

  toImage([x, y]) {
    const point = this.matrix().inverse().transformPoint({ x, y });
    return [point.x, point.y];
  }

  toCanvas([x, y]) {
    const point = this.matrix().transformPoint({ x, y });
    return [point.x, point.y];
  }

  // ---- drawing ----

  draw() { // with the next frame, once
    this.frame ??= requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { pen, canvas } = this;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture) return;
    this.paintImage(this.matrix(), [0, 0, canvas.width, canvas.height], this.scale);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    this.measuring.draw(pen);
    if (this.lens) this.paintLens();
  }

  paintLens() {
    const { pen, lens } = this;
    const radius = LENS.radius * this.ratio, [x, y] = lens;
    pen.save();
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.clip();
    pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    const place = new DOMMatrix().translate(x, y).scale(LENS.zoom).translate(-x, -y).multiply(this.matrix());
    this.paintImage(place, [x - radius, y - radius, x + radius, y + radius], this.scale * LENS.zoom);
    pen.restore();
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.strokeStyle = "#fffc";
    pen.lineWidth = 1.5 * this.ratio;
    pen.stroke();
  }

  paintImage(matrix, [left, top, right, bottom], scale) {
    const { pen, picture } = this;
    const size = this.findSize(scale);
    const shrunk = 2 ** this.sizes.indexOf(size);
    const back = matrix.inverse();
    const corners = [[left, top], [right, top], [left, bottom], [right, bottom]].map(([x, y]) => back.transformPoint({ x, y }));
    const bound = (places, most) => [clamp(Math.floor(Math.min(...places) / shrunk) - 1, 0, most), clamp(Math.ceil(Math.max(...places) / shrunk) + 1, 0, most)];
    const [x0, x1] = bound(corners.map(({ x }) => x), size.width);
    const [y0, y1] = bound(corners.map(({ y }) => y), size.height);
    if (x1 <= x0 || y1 <= y0) return;
    this.fillSheet(size, x0, y0, x1 - x0, y1 - y0);
    pen.setTransform(matrix);
    pen.imageSmoothingEnabled = scale < 4;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.sheet, 0, 0, x1 - x0, y1 - y0, x0 * shrunk, y0 * shrunk, (x1 - x0) * shrunk, (y1 - y0) * shrunk);
    if (this.map && this.evidence) {
      pen.globalAlpha = this.opacity;
      pen.imageSmoothingEnabled = true;
      pen.drawImage(this.map, 0, 0, picture.width, picture.height);
      pen.globalAlpha = 1;
    }
  }

  findSize(scale) { // the smallest that has a pixel for each of the screen
    let index = 0;
    while (scale * 2 ** (index + 1) <= 1) {
      this.sizes[index + 1] ??= halve(this.sizes[index]);
      index++;
    }
    return this.sizes[index];
  }

  fillSheet({ levels, width: row }, left, top, width, height) {
    if (this.sheet.width < width || this.sheet.height < height) {
      this.sheet.width = Math.max(width, this.sheet.width);
      this.sheet.height = Math.max(height, this.sheet.height);
      this.sheetPen = null;
    }
    this.sheetPen ??= this.sheet.getContext("2d", { willReadFrequently: true });
    const part = new ImageData(width, height);
    const pixels = new Uint32Array(part.data.buffer);
    for (let y = 0, to = 0; y < height; y++) {
      for (let from = (top + y) * row + left, end = from + width; from < end;) pixels[to++] = 0xff000000 | (this.shades[levels[from++]] * 0x010101);
    }
    this.sheetPen.putImageData(part, 0, 0);
  }
}
