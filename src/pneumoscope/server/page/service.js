// Calls the service: asks for a token if needed, and tries again while the service is busy.

export class Refused extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}
export class Lost extends Error {}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

function askForToken(why, changing = false) {
  const dialog = document.createElement("dialog");
  dialog.id = "ask";
  dialog.setAttribute("aria-labelledby", "ask-title");
  dialog.innerHTML = `<form method="dialog"><h2 id="ask-title">${changing ? "Change token" : "A token is needed"}</h2><p id="ask-why"></p>
    <label>Token <input id="token" type="password" autocomplete="off" required></label>
    <p class="row"><button type="submit" class="strong" value="given">Continue</button>
    <button type="submit" value="out" formnovalidate id="sign-out">Sign out</button><button type="submit" value="" formnovalidate>Cancel</button></p></form>`;
  document.body.append(dialog);
  document.getElementById("ask-why").textContent = why;
  document.getElementById("sign-out").hidden = !sessionStorage.getItem("token");
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => {
    const token = document.getElementById("token").value.trim();
    const given = dialog.returnValue === "given" && /^[\x21-\x7e]+$/.test(token); // nothing else fits a header
    dialog.remove();
    if (given) sessionStorage.setItem("token", token);
    if (dialog.returnValue === "out") return signOut();
    showAccess();
    done(given || (dialog.returnValue === "given" && askForToken("The token is not valid.", changing)));
  }, { once: true }));
}

async function signOut() { // forgets what this tab knows, the worklist included
  sessionStorage.removeItem("token");
  await Promise.all(onSignOut.map((act) => act()));
  location.reload();
}
export const onSignOut = [];

// A dismissed dialog can be got back, and a token changed.
function showAccess() {
  const button = document.getElementById("access") ?? document.createElement("button");
  Object.assign(button, { id: "access", type: "button", textContent: sessionStorage.getItem("token") ? "Change token" : "Sign in" });
  button.onclick = async () => {
    const changing = Boolean(sessionStorage.getItem("token"));
    if (await askForToken(changing ? "The new token is used from now on, and forgotten when this tab is closed." : WHY, changing)) {
      if (document.dispatchEvent(new Event("signed-in", { cancelable: true }))) location.reload();
    }
  };
  if (!button.isConnected) document.querySelector(".top")?.append(button);
}
const WHY = "Ask the person who runs this service for it. The token is forgotten when this tab is closed.";
if (sessionStorage.getItem("token")) showAccess();

let asking = null;
let troubled = false;

export async function call(path, options = {}) {
  for (let tries = 0; ; tries++) {
    const token = sessionStorage.getItem("token");
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Lost("The service does not respond.");
    }
    if (answer.ok) {
      if (troubled) document.dispatchEvent(new Event("recovered"));
      troubled = false;
      return answer;
    }
    const problem = await answer.json().catch(() => ({ detail: `The service answered ${answer.status}.` }));
    if (answer.status === 401) {
      if (sessionStorage.getItem("token") === token) {
        asking ??= askForToken(token ? "The token is not valid." : WHY).finally(() => { asking = null; });
        if (await asking) continue;
      } else continue;
    }
    if ((answer.status === 429 || answer.status === 503) && tries < 20) {
      if (answer.status === 503) {
        troubled = true;
        document.dispatchEvent(new CustomEvent("troubled", { detail: problem.detail }));
      }
      await pause(Number(answer.headers.get("retry-after")) || 1);
      continue;
    }
    throw new Refused(answer.status, problem.detail);
  }
}

export async function predict(file, { invert, any, heatmap, store = true, blind = false }) {
  let content;
  try {
    content = await file.arrayBuffer();
  } catch {
    throw new Refused(0, "The file can no longer be opened. Choose it again.");
  }
  const form = new FormData();
  form.append("files", new Blob([content]), file.name);
  const query = new URLSearchParams({ heatmap, picture: true, invert, any_modality: any, store, ...(blind ? { blind } : {}) });
  const answer = await call(`v1/predictions?${query}`, { method: "POST", body: form });
  return (await answer.json()).predictions[0];
}

export function toBlob(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}
