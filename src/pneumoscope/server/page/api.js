// The page of the API: samples name this service, and requests can be tried.

import { call } from "./service.js";

const base = new URL("./", location.href).href;
for (const place of document.querySelectorAll(".base")) place.textContent = base;

function build(form) {
  const query = new URLSearchParams();
  const headers = {};
  let path = form.dataset.path.slice(1);
  let body;
  for (const field of form.querySelectorAll("[data-in]")) {
    const { value, name } = field;
    const place = field.dataset.in;
    if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (place === "query" && value) query.set(name, value);
    else if (place === "header" && value) headers[name] = value;
    else if (place === "body") {
      headers["Content-Type"] = "application/json";
      body = value;
    } else if (place === "files") {
      body = new FormData();
      for (const file of field.files) body.append("files", file);
    }
  }
  const asked = query.size ? `${path}?${query}` : path;
  return [asked, { method: form.dataset.method, headers, body }];
}

async function show(answer, output) {
  const line = document.createElement("p");
  const where = answer.headers.get("location");
  line.textContent = `${answer.status} ${answer.statusText}${where ? `, Location: ${where}` : ""}, X-Request-ID: ${answer.headers.get("x-request-id")}`;
  const type = answer.headers.get("content-type") ?? "";
  if (type.startsWith("image/")) {
    const picture = Object.assign(document.createElement("img"), { alt: "The image that the service sent", src: URL.createObjectURL(await answer.blob()) });
    output.replaceChildren(line, picture);
    return;
  }
  const text = type.startsWith("application/dicom") ? `${(await answer.blob()).size} bytes` : await answer.text();
  const body = document.createElement("pre");
  body.tabIndex = 0;
  body.textContent = type.startsWith("application/json") ? JSON.stringify(JSON.parse(text), null, 2) : text;
  output.replaceChildren(line, body);
}

for (const form of document.querySelectorAll("form.try")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const output = form.querySelector("output");
    output.textContent = "…";
    try {
      await show(await call(...build(form)), output);
    } catch (problem) {
      output.textContent = `${problem.status ?? ""} ${problem.message}`;
    }
  });
}
