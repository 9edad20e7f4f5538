"use strict";
// Tables that sort: click a heading or press Enter on it. What was not measured stays at the end.
for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.title = head.title;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = column === 0 ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (column === 0) return sign * x.localeCompare(y, "en");
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (Number(x) - Number(y));
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
// Light and dark: as the system says, until somebody chooses.
const toggle = document.querySelector(".toggle");
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const label = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
const remember = (theme) => { try { localStorage.setItem("jaxmerge-theme", theme); } catch { /* a file may have no storage */ } };
const recall = () => { try { return localStorage.getItem("jaxmerge-theme"); } catch { return null; } };
if (["light", "dark"].includes(recall())) root.dataset.theme = recall();
toggle.hidden = false;
toggle.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  remember(root.dataset.theme);
  label();
});
system.addEventListener("change", label);
label();
