// Shows an image as a radiologist expects: pan, zoom, window and level on all its levels, inversion, evidence over it.

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.changed = null; // called when what is shown, or how, has changed
    this.image = null;
    this.opacity = 0.55;
    this.evidence = true;
    this.dragWindows = false;
    this.pointers = new Map();
    this.reset(false);
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("dblclick", () => this.fit());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("keydown", (event) => this.key(event));
    this.resize();
  }

  async show(view, heatmap) {
    this.clear(); // no image is shown under the words of another
    const turn = this.turn;
    const [image, map] = await Promise.all([createImageBitmap(view, exact), heatmap ? createImageBitmap(heatmap) : null]);
    if (turn !== this.turn) return;
    const { width, height } = image;
    const own = new OffscreenCanvas(width, height);
    const pen = own.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    pen.drawImage(image, 0, 0);
    const picture = pen.getImageData(0, 0, width, height);
    const bytes = picture.data;
    const levels = new Uint16Array(width * height);
    const deep = isDeep(bytes);
    for (let i = 0, at = 0; i < levels.length; i++, at += 4) levels[i] = deep ? (bytes[at] << 8) | bytes[at + 1] : bytes[at] * 257;
    this.image = { width, height, levels, picture, own, pen };
    this.map = map;
    this.reset(false);
    this.fit();
  }

  clear() {
    this.turn = (this.turn ?? 0) + 1;
    this.image = this.map = null;
    this.draw();
    this.changed?.();
  }

  reset(draw = true) {
    Object.assign(this, { level: 0.5, window: 1, inverted: false });
    if (draw) this.develop();
    this.changed?.();
  }

  set(values) {
    Object.assign(this, values);
    this.level = clamp(this.level, 0, 1);
    this.window = clamp(this.window, 0.01, 2);
    this.develop();
    this.changed?.();
  }

  develop() {
    if (!this.image) return;
    const { levels, picture, pen } = this.image;
    const shades = new Uint8ClampedArray(65536);
    const low = this.level - this.window / 2;
    for (let i = 0; i < 65536; i++) {
      const shade = 255 * clamp((i / 65535 - low) / this.window, 0, 1);
      shades[i] = this.inverted ? 255 - shade : shade;
    }
    const pixels = new Uint32Array(picture.data.buffer);
    for (let i = 0; i < levels.length; i++) pixels[i] = 0xff000000 | (shades[levels[i]] * 0x010101);
    pen.putImageData(picture, 0, 0);
    this.draw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    const fitted = !this.image || Math.abs(this.scale - this.fitting()) < 1e-9;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (fitted) this.fit();
    else this.draw();
  }

  fitting() {
    return this.image ? Math.min(this.canvas.width / this.image.width, this.canvas.height / this.image.height) : 1;
  }

  fit() {
    this.scale = this.fitting();
    this.centre = this.image ? [this.image.width / 2, this.image.height / 2] : [0, 0];
    this.develop();
    if (!this.image) this.draw();
    this.changed?.();
  }

  zoom(factor, at = [this.canvas.width / 2, this.canvas.height / 2]) {
    if (!this.image) return;
    const next = clamp(this.scale * factor, this.fitting() / 4, Math.max(40, this.fitting()));
    const moved = [at[0] - this.canvas.width / 2, at[1] - this.canvas.height / 2];
    this.centre = this.centre.map((place, i) => place + moved[i] / this.scale - moved[i] / next);
    this.scale = next;
    this.pan(0, 0);
  }

  pan(x, y) {
    if (!this.image) return;
    this.centre = [clamp(this.centre[0] - x / this.scale, 0, this.image.width), clamp(this.centre[1] - y / this.scale, 0, this.image.height)];
    this.draw();
    this.changed?.();
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image) return;
    const { width, height, own } = this.image;
    pen.setTransform(this.scale, 0, 0, this.scale, this.canvas.width / 2 - this.centre[0] * this.scale, this.canvas.height / 2 - this.centre[1] * this.scale);
    pen.imageSmoothingEnabled = this.scale < 4;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(own, 0, 0);
    if (this.map && this.evidence) {
      pen.globalAlpha = this.opacity;
      pen.imageSmoothingEnabled = true;
      pen.drawImage(this.map, 0, 0, width, height);
      pen.globalAlpha = 1;
    }
  }

  place(event) {
    const ratio = this.canvas.width / this.canvas.clientWidth;
    return [event.offsetX * ratio, event.offsetY * ratio];
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), this.place(event));
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    this.pointers.set(event.pointerId, this.place(event));
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.place(event);
    const [x, y] = [now[0] - before[0], now[1] - before[1]];
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
      this.zoom(apart(now, other) / Math.max(1, apart(before, other)), [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
      this.pan(x / 2, y / 2);
    } else if (this.dragWindows || event.shiftKey || event.buttons & 2) {
      this.set({ window: this.window + x / this.canvas.width, level: this.level + y / this.canvas.height });
    } else {
      this.pan(x, y);
    }
    this.pointers.set(event.pointerId, now);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 40 * (window.devicePixelRatio || 1);
    const keys = {
      ArrowLeft: () => this.pan(step, 0), ArrowRight: () => this.pan(-step, 0), ArrowUp: () => this.pan(0, step), ArrowDown: () => this.pan(0, -step),
      "+": () => this.zoom(1.25), "=": () => this.zoom(1.25), "-": () => this.zoom(0.8), 0: () => this.fit(),
      i: () => this.set({ inverted: !this.inverted }), "[": () => this.set({ window: this.window * 0.9 }), "]": () => this.set({ window: this.window / 0.9 }),
      ",": () => this.set({ level: this.level - 0.02 }), ".": () => this.set({ level: this.level + 0.02 }),
      h: () => { this.evidence = !this.evidence; this.draw(); this.changed?.(); },
    };
    const act = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

// An image of 16 bits comes with its high byte in red and its low byte in green; one of 8 bits is grey.
function isDeep(bytes) {
  for (let at = 0; at < bytes.length; at += 4) if (bytes[at] !== bytes[at + 1] || bytes[at] !== bytes[at + 2]) return true;
  return false;
}
