// A list that makes elements only for the rows in sight, so that thousands of images scroll smoothly.

const MORE = 8; // rows above and below those in sight

export class Rows {
  // `box` scrolls, `body` holds the rows; `make()` gives an empty row, and `fill(row, item)` shows an item in it.
  constructor(box, body, { make, fill }) {
    Object.assign(this, { box, body, make, fill, items: [], places: new Map(), made: new Map(), kept: null });
    box.addEventListener("scroll", () => this.paintSoon(), { passive: true });
    new ResizeObserver(() => this.paintSoon()).observe(box);
  }

  get height() { // of a row; the style sheet knows it
    const style = getComputedStyle(this.box);
    return parseFloat(style.getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  show(items) {
    this.items = items;
    this.places = new Map(items.map((item, at) => [item.key, at]));
    this.paint();
  }

  paintSoon() {
    this.due ??= requestAnimationFrame(() => { this.due = null; this.paint(); });
  }

  paint() {
    const { height, items, box } = this;
    this.body.style.height = `${height * items.length}px`;
    const top = Math.max(0, Math.floor(box.scrollTop / height) - MORE);
    const end = Math.min(items.length, Math.ceil((box.scrollTop + box.clientHeight) / height) + MORE);
    const wanted = [];
    for (let at = top; at < end; at++) wanted.push(at);
    const kept = this.places.get(this.kept); // has the focus, or gets it by Tab
    if (kept !== undefined && (kept < top || kept >= end)) wanted[kept < top ? "unshift" : "push"](kept);
    const focused = document.activeElement;
    const made = new Map();
    const keys = new Set(wanted.map((at) => items[at].key));
    for (const [key, row] of this.made) if (!keys.has(key)) row.remove();
    let before = null;
    for (const at of wanted) {
      const item = items[at];
      const row = this.made.get(item.key) ?? this.make();
      made.set(item.key, row);
      row.style.top = `${at * height}px`;
      row.setAttribute("aria-rowindex", at + 2); // the heading is the first
      this.fill(row, item);
      const place = before ? before.nextSibling : this.body.firstChild;
      if (place !== row) this.body.insertBefore(row, place);
      before = row;
    }
    this.made = made;
    if (focused !== document.activeElement && this.body.contains(focused)) focused.focus({ preventScroll: true });
  }

  reveal(key) { // within its list; the page itself stays where it is
    const at = this.places.get(key);
    if (at === undefined) return;
    const { height, box } = this;
    const head = this.body.parentElement.tHead.offsetHeight;
    const [above, below] = [at * height, at * height + height + head - box.clientHeight];
    if (box.scrollTop > above) box.scrollTop = above;
    else if (box.scrollTop < below) box.scrollTop = below;
    this.paint();
  }
}
