// Decodes the service's pictures: grey PNGs of stored levels, of which a browser itself would keep no more than 8 bits.

const NO_FACTS = { lowest: 0, bits: 8, full: [0, 255], inverted: false, aspect: 1, reduced: 1 };

export async function readPicture(blob) {
  const file = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(file.buffer);
  const parts = [];
  let header = null, facts = NO_FACTS;
  for (let at = 8; at < file.length;) { // chunks: length, kind, content, checksum
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...file.subarray(at + 4, at + 8));
    const content = file.subarray(at + 8, at + 8 + length);
    if (kind === "IHDR") header = { width: view.getUint32(at + 8), height: view.getUint32(at + 12), depth: content[8], colour: content[9], interlaced: content[12] };
    else if (kind === "IDAT") parts.push(content);
    else if (kind === "iTXt") facts = (await readFacts(content)) ?? facts;
    at += 12 + length;
  }
  if (!header || header.colour !== 0 || header.interlaced || ![8, 16].includes(header.depth)) throw new Error("not a picture of the service");
  const { width, height, depth } = header;
  const bytes = unfilter(await inflate(parts), width * depth / 8, height, depth / 8);
  return { width, height, levels: toLevels(bytes, depth), facts };
}

async function inflate(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function readFacts(content) { // keyword, 0, compressed, method, language, 0, translation, 0, text
  const words = new TextDecoder();
  const first = content.indexOf(0);
  if (words.decode(content.subarray(0, first)) !== "pneumoscope") return null;
  const start = content.indexOf(0, content.indexOf(0, first + 3) + 1) + 1;
  const text = content.subarray(start);
  return JSON.parse(words.decode(content[first + 1] ? await inflate([text]) : text));
}

// Undo the filters of PNG (ISO/IEC 15948, 9.2): each row is preceded by its filter; `size` is that of a pixel in bytes.
function unfilter(filtered, row, height, size) {
  const bytes = new Uint8Array(row * height);
  if (filtered.length !== (row + 1) * height) throw new Error("incomplete");
  for (let y = 0; y < height; y++) {
    const from = y * (row + 1) + 1, to = y * row, above = to - row;
    const kind = filtered[from - 1];
    for (let x = 0; x < row; x++) {
      const left = x >= size ? bytes[to + x - size] : 0;
      const up = y ? bytes[above + x] : 0;
      let guess = 0;
      if (kind === 1) guess = left;
      else if (kind === 2) guess = up;
      else if (kind === 3) guess = (left + up) >> 1;
      else if (kind === 4) guess = predictByPaeth(left, up, y && x >= size ? bytes[above + x - size] : 0);
      bytes[to + x] = filtered[from + x] + guess;
    }
  }
  return bytes;
}

function predictByPaeth(left, up, corner) {
  const toLeft = Math.abs(up - corner), toUp = Math.abs(left - corner), toCorner = Math.abs(left + up - 2 * corner);
  return toLeft <= toUp && toLeft <= toCorner ? left : toUp <= toCorner ? up : corner;
}

function toLevels(bytes, depth) {
  if (depth === 8) return Uint16Array.from(bytes);
  const levels = new Uint16Array(bytes.length / 2);
  for (let i = 0, at = 0; i < levels.length; i++, at += 2) levels[i] = (bytes[at] << 8) | bytes[at + 1];
  return levels;
}

// The same image at half the size, each four levels made their mean: what is shown small is computed from it.
export function halve({ width, height, levels }) {
  const across = Math.ceil(width / 2), down = Math.ceil(height / 2);
  const half = new Uint16Array(across * down);
  for (let y = 0, at = 0; y < down; y++) {
    const upper = 2 * y * width, lower = Math.min(2 * y + 1, height - 1) * width;
    for (let x = 0; x < across; x++, at++) {
      const left = 2 * x, right = Math.min(left + 1, width - 1);
      half[at] = (levels[upper + left] + levels[upper + right] + levels[lower + left] + levels[lower + right] + 2) >> 2;
    }
  }
  return { width: across, height: down, levels: half };
}
