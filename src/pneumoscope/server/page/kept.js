// Keeps the worklist in this browser, so that it survives a reload and a visit to another page.
//
// Images may name patients. So what is kept is encrypted, with a key that only this tab has (session storage): once the
// tab is closed, nobody can read it. It is bounded, and deleted with "Clear", by signing out, or when the reading room is
// opened after 12 hours without use.

import { state } from "./state.js";

const BOUND = 400e6; // bytes of pictures and files of one tab
const FILE_BOUND = 64e6;
const UNUSED = 12 * 3600e3; // milliseconds
const PASSING = ["draft", "saving", "recalled", "bytesKept"]; // of an image: has its own place, or is not kept
const TABLES = ["images", "blobs"];

let base = null;
let session = null; // { id, key, bytes }
export const kept = { on: false, full: false };

const settle = (request) => new Promise((done, fail) => { request.onsuccess = () => done(request.result); request.onerror = () => fail(request.error); });
const end = (change) => new Promise((done, fail) => { change.oncomplete = done; change.onabort = change.onerror = () => fail(change.error); });
const all = (id) => IDBKeyRange.bound([id], [id, []]);

// ---- what is small: in session storage, at once ----

const read = (key) => JSON.parse(sessionStorage.getItem(key) ?? "null");
function write(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch {
    kept.full = true; // the page then asks before it is left
  }
}
export const recallView = () => read("view") ?? {};
export function rememberView(changes) { if (kept.on) write("view", { ...recallView(), ...changes }); }
export const recallDraft = (key) => read(`draft ${key}`) ?? undefined;
export function rememberDraft(key, draft) {
  if (!kept.on) return;
  if (draft) write(`draft ${key}`, draft);
  else sessionStorage.removeItem(`draft ${key}`);
}

// ---- the session ----

async function lock(id) { // false if another tab has it: a duplicated one has the same session storage
  for (let tries = 0; tries < 10; tries++) {
    const own = await new Promise((done) => {
      navigator.locks.request(`pneumoscope ${id}`, { ifAvailable: true }, (held) => { done(held !== null); return held && new Promise(() => {}); });
    });
    if (own) return true;
    await new Promise((done) => setTimeout(done, 100)); // until the page before has gone
  }
  return false;
}

async function begin() {
  let found = read("worklist");
  if (!found || !(await lock(found.id))) {
    forgetSmall();
    const secret = crypto.getRandomValues(new Uint8Array(32));
    found = { id: crypto.randomUUID(), secret: btoa(String.fromCharCode(...secret)) };
    sessionStorage.setItem("worklist", JSON.stringify(found));
    await lock(found.id);
  }
  const secret = Uint8Array.from(atob(found.secret), (letter) => letter.charCodeAt(0));
  return { id: found.id, key: await crypto.subtle.importKey("raw", secret, "AES-GCM", false, ["encrypt", "decrypt"]), bytes: 0 };
}

function open() {
  const request = indexedDB.open("pneumoscope", 1);
  request.onupgradeneeded = () => {
    const made = request.result;
    made.createObjectStore("sessions", { keyPath: "id" });
    made.createObjectStore("images", { keyPath: ["session", "key"] });
    made.createObjectStore("blobs", { keyPath: ["session", "key", "part"] });
  };
  return settle(request);
}

function forgetSmall() {
  for (const key of Object.keys(sessionStorage)) if (key === "view" || key.startsWith("draft ")) sessionStorage.removeItem(key);
}

async function deleteSession(id) {
  const change = base.transaction([...TABLES, "sessions"], "readwrite");
  for (const table of TABLES) change.objectStore(table).delete(all(id));
  change.objectStore("sessions").delete(id);
  await end(change);
}

async function touch() {
  await settle(base.transaction("sessions", "readwrite").objectStore("sessions").put({ id: session.id, touched: Date.now() }));
}

// Gives the images that were kept, without their pictures.
export async function restore() {
  if (!isSecureContext || !navigator.locks || !window.indexedDB) return [];
  try {
    base = await open();
    session = await begin();
    for (const { id, touched } of await settle(base.transaction("sessions").objectStore("sessions").getAll())) {
      if (id !== session.id && touched < Date.now() - UNUSED) await deleteSession(id);
    }
    await touch();
    setInterval(() => touch().catch(() => {}), 300e3);
    const images = [];
    for (const record of await settle(base.transaction("images").objectStore("images").getAll(all(session.id)))) {
      const image = await decrypt(record).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))).catch(() => null);
      if (image) images.push(Object.assign(image, { bytesKept: record.blobs }));
      session.bytes += record.blobs;
    }
    kept.on = true;
    return images;
  } catch {
    base = session = null; // private windows of some browsers have no such storage
    return [];
  }
}

// ---- images ----

async function encrypt(content) {
  const iv = crypto.getRandomValues(new Uint8Array(12));
  return { iv, data: await crypto.subtle.encrypt({ name: "AES-GCM", iv }, session.key, content) };
}
const decrypt = ({ iv, data }) => crypto.subtle.decrypt({ name: "AES-GCM", iv }, session.key, data);

function split(image) { // into what is text, and files and pictures by their places
  const blobs = {};
  const plain = {};
  for (const [name, value] of Object.entries(image)) {
    if (value instanceof Blob) blobs[name] = value;
    else if (value && typeof value === "object" && Object.values(value).some((part) => part instanceof Blob)) {
      plain[name] = {};
      for (const [part, inner] of Object.entries(value)) {
        if (inner instanceof Blob) blobs[`${name}.${part}`] = inner;
        else plain[name][part] = inner;
      }
    } else plain[name] = value;
  }
  for (const name of PASSING) delete plain[name];
  return { plain, blobs };
}

async function toRecord(image, plain, blobs) {
  return { session: session.id, key: image.key, blobs, ...await encrypt(new TextEncoder().encode(JSON.stringify(plain))) };
}

async function store(image) {
  const { plain, blobs } = split(image);
  if (plain.kept) return storeText(image, plain); // its pictures are there already
  const parts = [];
  let size = 0;
  for (const [part, blob] of Object.entries(blobs)) {
    if (part === "file" && blob.size > FILE_BOUND) continue;
    size += blob.size;
    if (session.bytes - (image.bytesKept ?? 0) + size > BOUND) { kept.full = true; return storeText(image, plain); }
    parts.push({ session: session.id, key: image.key, part, name: blob.name, type: blob.type, ...await encrypt(await blob.arrayBuffer()) });
  }
  if (!parts.length) return storeText(image, plain);
  const names = parts.map((each) => each.part);
  const record = await toRecord(image, { ...plain, kept: names }, size);
  const change = base.transaction(TABLES, "readwrite");
  change.objectStore("blobs").delete(partsOf(image));
  for (const part of parts) change.objectStore("blobs").put(part);
  change.objectStore("images").put(record);
  await end(change);
  session.bytes += size - (image.bytesKept ?? 0);
  image.bytesKept = size;
  const now = split(image).blobs;
  if (Object.keys({ ...blobs, ...now }).every((part) => now[part] === blobs[part])) image.kept = names;
  else keep(image); // an answer has arrived meanwhile; its pictures must still be stored
}
const partsOf = ({ key }) => IDBKeyRange.bound([session.id, key], [session.id, key, []]);

async function storeText(image, plain) {
  const record = await toRecord(image, plain, plain.kept ? image.bytesKept : 0);
  const change = base.transaction(TABLES, "readwrite");
  if (!plain.kept) change.objectStore("blobs").delete(partsOf(image));
  change.objectStore("images").put(record);
  await end(change);
  if (plain.kept) return;
  session.bytes -= image.bytesKept ?? 0;
  image.bytesKept = 0;
}

let dirty = new Set();
let busy = null;
let stored = () => {};
export function whenStored(job) { stored = job; } // called with each image whose pictures have been stored
export function keep(image) { // soon; one after the other, so that memory stays bounded
  if (!kept.on || image.case !== undefined || !state.images.includes(image)) return; // what is answered after "Clear" stays away, and teaching
  dirty.add(image);
  busy ??= storeAll(dirty);
}

async function storeAll(images) { // until the list is cleared, after which other images wait in a set of their own
  await clearing?.catch(() => { kept.full = true; });
  for (const next of images) {
    images.delete(next);
    await store(next).catch(() => { kept.full = true; }); // the disk is full, or the image's file is gone
    if (isKept(next)) stored(next);
  }
  if (images === dirty) busy = null;
}

export const isKept = (image) => !dirty.has(image) && Boolean(image.kept?.length);

export async function recall(image) { // its pictures and file
  const parts = kept.on ? await settle(base.transaction("blobs").objectStore("blobs").getAll(partsOf(image))) : [];
  for (const part of parts) {
    const content = await decrypt(part);
    const blob = part.part === "file" ? new File([content], part.name, { type: part.type }) : new Blob([content], { type: part.type });
    const [name, inner] = part.part.split(".");
    if (inner) image[name][inner] = blob;
    else image[name] = blob;
  }
}

let clearing = null;
export function clearKept() {
  dirty.clear();
  dirty = new Set();
  forgetSmall();
  kept.full = false;
  if (!session) return Promise.resolve();
  const writing = busy;
  busy = null;
  clearing = (async () => {
    await writing;
    session.bytes = 0;
    await deleteSession(session.id);
    await touch();
  })();
  return clearing;
}
