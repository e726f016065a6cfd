// On a phone, tables.css shows each cell below the name of its column
for (const table of document.querySelectorAll("article table:not([class])")) {
  const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  for (const row of table.querySelectorAll("tbody tr")) {
    [...row.cells].forEach((cell, column) => (cell.dataset.column = names[column] ?? ""));
  }
}
