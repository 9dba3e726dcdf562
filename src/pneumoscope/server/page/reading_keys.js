// Keys for reading before the model's answer, and for teaching. Gives whether a key was used.

import { showStage } from "./image.js";
import { changeSure, chooseSeen, commitReading, phaseOf } from "./reading.js";
import { $, state } from "./state.js";
import { nextCase } from "./teaching.js";
import { goOn } from "./worklist.js";

const OTHERS = "textarea, select, button, a, summary, dialog *, input:not([type=radio])";

export async function nextReading() {
  if (state.mode === "teaching") return nextCase();
  const { current } = state;
  if (current && phaseOf(current) === "second" && !(await commitReading())) return;
  if (state.current !== current) return; // the reader has gone elsewhere meanwhile
  goOn();
  showStage();
}

function act(key) {
  if (/^[1-9]$/.test(key)) return chooseSeen(Number(key));
  const acts = { c: () => chooseSeen("c"), j: () => changeSure(-1), k: () => changeSure(1), e: () => $("remark").focus(), a: () => {}, d: () => {}, u: () => {} };
  acts[key]?.();
  return key in acts;
}

export function useKey(event, typing) {
  const { key, target } = event;
  if (state.mode === "assist" || event.altKey) return false;
  const open = !$("reading").hidden;
  if (key === "Enter" && open) {
    const writing = target.matches("textarea");
    if (event.repeat && !writing) { event.preventDefault(); return true; } // one press, one reading
    if (writing ? !(event.ctrlKey || event.metaKey) : target.matches(OTHERS) && target.id !== "commit" && !target.closest("#worklist tbody, #case-list")) return false;
    event.preventDefault();
    commitReading();
    return true;
  }
  if (event.ctrlKey || event.metaKey || typing) return false;
  const teaching = state.mode === "teaching";
  if (teaching && ["ArrowDown", "ArrowUp"].includes(key) && target === document.body) {
    event.preventDefault();
    nextCase(key === "ArrowDown" ? 1 : -1);
    return true;
  }
  if (!$("letters").checked) return false;
  const letter = key.toLowerCase();
  if (event.shiftKey && /^Digit/.test(event.code)) return false; // presets of the window
  if (letter === "s" || (teaching && "np".includes(letter))) {
    event.preventDefault();
    if (teaching && letter === "p") nextCase(-1);
    else nextReading();
    return true;
  }
  if (open && act(letter)) {
    event.preventDefault();
    return true;
  }
  return ["a", "d", "u"].includes(letter);
}

$("reading-next").addEventListener("click", nextReading);
