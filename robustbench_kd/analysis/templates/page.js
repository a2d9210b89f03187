"use strict";
// A click on a heading sorts the runs by it, a second click turns the order round; published numbers stay beneath.
function sortBy(button) {
  const heading = button.closest("th"), table = button.closest("table"), column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  const key = row => row.cells[column].dataset.key;
  const empty = row => key(row) === "";
  const numeric = heading.classList.contains("number");
  const order = (a, b) => numeric ? key(a) - key(b) : key(a).localeCompare(key(b), "en", { numeric: true });
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => empty(a) - empty(b) || (down ? order(b, a) : order(a, b)));
  body.append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
}
for (const button of document.querySelectorAll("table.sortable button")) {
  button.addEventListener("click", () => sortBy(button));
}
