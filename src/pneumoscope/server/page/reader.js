// Who reads: the name of a review comes from the login where there is one.

import { call, Refused } from "./service.js";
import { $ } from "./state.js";

const LOCAL = ["localhost", "127.0.0.1", "[::1]"];
export const reader = { name: null };

export async function identify() {
  if (!sessionStorage.getItem("token") && LOCAL.includes(location.hostname)) return; // nobody logs in on the computer itself
  try {
    const me = await (await call("v1/me")).json();
    if (me.named) reader.name = me.name;
    $("may-not").hidden = me.may.includes("review");
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem; // a service without names
  }
  $("reviewer").readOnly = reader.name !== null;
  $("reviewer").title = reader.name === null ? "" : "Your name, from the login";
}

export const findName = () => reader.name ?? localStorage.getItem("reviewer") ?? "";
