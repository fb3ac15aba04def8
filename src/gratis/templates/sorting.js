"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const value = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.dataset.text === undefined ? null : cell.dataset.text;
  };
  const sort = (column, falling) => {
    for (const body of table.tBodies) {
      // rows that head a group stay where they are, cells without a value go last
      const rows = Array.from(body.rows).filter((row) => !row.classList.contains("protocol"));
      rows.sort((one, other) => {
        const a = value(one, column), b = value(other, column);
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return falling ? -order : order;
      });
      body.append(...rows);
    }
  };
  heads.forEach((head, column) => {
    const rows = Array.from(table.tBodies).flatMap((body) => Array.from(body.rows));
    const known = rows.filter((row) => !row.classList.contains("protocol")).map((row) => value(row, column));
    if (known.every((found) => found === null)) return;
    const numeric = known.some((found) => typeof found === "number");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const falling = before === "none" ? numeric : before === "ascending";
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      sort(column, falling);
    });
  });
  table.classList.add("can-sort");
}
