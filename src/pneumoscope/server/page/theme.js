// Dark, unless the reader has chosen light. Not a module: it runs before the page is drawn, to prevent a flash of the wrong colours.

(() => {
  const page = document.documentElement;
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* a browser without storage forgets it */ }
  page.dataset.theme = theme === "light" ? "light" : "dark";
  addEventListener("storage", ({ key, newValue }) => { if (key === "theme") page.dataset.theme = newValue === "light" ? "light" : "dark"; });
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => { button.textContent = page.dataset.theme === "light" ? "Dark" : "Light"; };
    button.addEventListener("click", () => {
      page.dataset.theme = page.dataset.theme === "light" ? "dark" : "light";
      try { localStorage.setItem("theme", page.dataset.theme); } catch { /* the same */ }
      name();
    });
    name();
  });
})();
