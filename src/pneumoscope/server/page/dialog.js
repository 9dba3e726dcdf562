// A question before something is lost, in the page's own style. Gives whether the reader agrees.

import { create } from "./state.js";

export function ask(title, words, agree) {
  const dialog = create("dialog", { id: "question", "aria-labelledby": "question-title", "aria-describedby": "question-words" },
    create("form", { method: "dialog" }, create("h2", { id: "question-title" }, title), create("p", { id: "question-words" }, words),
      create("p", { class: "row" }, create("button", { type: "submit", value: "yes", class: "strong" }, agree), create("button", { type: "submit", value: "" }, "Cancel"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((done) => {
    const end = (agreed) => { dialog.remove(); done(agreed); };
    dialog.addEventListener("submit", (event) => { event.preventDefault(); end(event.submitter?.value === "yes"); });
    dialog.addEventListener("close", () => end(false), { once: true });
  });
}
