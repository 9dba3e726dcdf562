// What a reader has chosen, kept in this browser.

export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`viewer.${name}`)) ?? otherwise;
  } catch { // no storage, or something else in it
    return otherwise;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`viewer.${name}`, JSON.stringify(value));
  } catch { /* a browser without storage forgets it */ }
}
