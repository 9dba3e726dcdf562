// What the page says while the service cannot be reached, or has no access to its storage.

import { $, say } from "./state.js";

export const outage = { lost: false };

export function lose(again) { // calls again as soon as the service answers
  if (outage.lost) return;
  outage.lost = true;
  say($("outage"), "The service does not respond. Waiting images are kept here and sent as soon as it is back.");
  const look = async () => {
    try {
      await fetch("healthz");
    } catch {
      return setTimeout(look, 2000);
    }
    recover();
    again();
  };
  setTimeout(look, 2000);
}

export function recover() {
  outage.lost = false;
  $("outage").hidden = true;
}

document.addEventListener("troubled", (event) => say($("outage"), `${event.detail} Trying again.`));
document.addEventListener("recovered", recover);
