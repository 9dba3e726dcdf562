// The reader's name, which comes from the login if there is one.

import { call, Refused } from "./service.js";
import { $ } from "./state.js";

export const reader = { name: null, mode: null, bound: false };

export async function identify() {
  try {
    const me = await (await call("v1/me")).json();
    if (me.named) reader.name = me.name;
    Object.assign(reader, { mode: me.mode ?? null, bound: Boolean(me.bound) });
    $("may-not").hidden = me.may.includes("review");
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem; // a service without names
  }
  $("reviewer").readOnly = reader.name !== null;
  $("reviewer").title = reader.name === null ? "" : "Your name, from the login";
}

export const findName = () => reader.name ?? localStorage.getItem("reviewer") ?? "";
