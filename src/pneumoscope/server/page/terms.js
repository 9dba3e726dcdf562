// Terms with an explanation (in terms.html), which is shown while the pointer or the focus is on the term, or after a click.

const tip = document.getElementById("tip");
let shown = null; // the term that is being explained

export function makeTerm(words, about) {
  const term = document.createElement("button");
  Object.assign(term, { type: "button", className: "term", textContent: words });
  term.setAttribute("aria-describedby", `about-${about}`);
  return term;
}

function show(term) {
  shown = term;
  tip.textContent = document.getElementById(term.getAttribute("aria-describedby")).textContent;
  tip.showPopover();
  place();
}

function place() {
  if (!shown) return;
  const { left, top, bottom } = shown.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = tip;
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  tip.style.top = `${bottom + height + 8 < innerHeight ? bottom : Math.max(8, top - height)}px`;
}

function hide() {
  if (!shown) return;
  shown = null;
  tip.hidePopover();
}

const find = ({ target }) => target.closest?.(".term") ?? null;
for (const event of ["pointerover", "focusin"]) document.addEventListener(event, (each) => { if (find(each)) show(find(each)); });
document.addEventListener("click", (event) => (find(event) ? show(find(event)) : hide())); // a finger can only click
document.addEventListener("focusout", (event) => { if (find(event) === shown) hide(); });
document.addEventListener("pointerout", (event) => { // the pointer may go on to the explanation
  const at = event.relatedTarget;
  if ((find(event) === shown || event.target === tip) && at !== tip && at !== shown) hide();
});
addEventListener("scroll", place, { capture: true, passive: true });
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !shown) return;
  event.stopPropagation();
  hide();
}, true);
