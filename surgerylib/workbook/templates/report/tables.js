"use strict";
// A table of class "sortable" can be read without this. With it, each header sorts its column, and a filter hides rows.
{
  DataTable.ext.errMode = "none"; // a table of an unforeseen shape stays plain; the default is a dialogue box
  // data-order="" says that there is no value: such rows stand last in either direction
  const compare = (sign) => (a, b) => (a === "") - (b === "") || sign * (a - b);
  DataTable.type("given-number", { order: { asc: compare(1), desc: compare(-1) } });

  for (const table of document.querySelectorAll("table.sortable")) {
    const first = table.tBodies[0]?.rows[0];
    if (!table.tHead || !first?.nextElementSibling) continue; // nothing to sort
    if (table.querySelector("[rowspan], [colspan]")) continue; // the columns could not be told apart
    const columns = [...table.tHead.rows[0].cells].map((header, index) => ({
      ariaTitle: header.textContent,
      ...(first.cells[index]?.hasAttribute("data-order") && { type: "given-number" }),
    }));
    new DataTable(table, {
      columns,
      order: [],
      paging: false,
      info: false,
      autoWidth: false,
      orderClasses: false,
      layout: { topStart: "search", topEnd: null, bottomStart: null, bottomEnd: null },
      language: { search: "Filter", zeroRecords: "No row holds this text." },
    });
    // above the box that scrolls sideways: it must not scroll away
    const scroll = table.closest(".scroll");
    scroll.before(scroll.querySelector(".dt-search"));
    // the library makes each arrow a button, and lets the Enter key alone press it
    table.tHead.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target.getAttribute("role") !== "button") return;
      event.preventDefault();
      event.target.click();
    });
  }
}
