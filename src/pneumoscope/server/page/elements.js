// Elements that several pages make.

export function make(tag, attributes = {}, words = "") {
  const made = tag === "svg" || make.drawn.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (words) made.textContent = words;
  return made;
}
make.drawn = new Set(["rect", "text", "path", "line", "title"]);

export function card(name, value, below) {
  const made = make("section", { class: "card" });
  made.append(make("h2", {}, name), make("strong", {}, value), make("p", { class: "quiet" }, below));
  return made;
}
