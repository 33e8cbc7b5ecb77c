/* Sorts tables of class "sortable" by a click on, or Enter in, a column's head. Without it the tables are
   complete and in their first order. */
(function () {
  "use strict";
  function key(row, column) {
    var cell = row.cells[column];
    return cell.hasAttribute("data-value") ? cell.getAttribute("data-value") : cell.textContent.trim();
  }
  function compare(a, b) {
    var x = parseFloat(a), y = parseFloat(b);
    return isNaN(x) || isNaN(y) || !isFinite(a) || !isFinite(b) ? a.localeCompare(b) : x - y;
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      if (!head.hasAttribute("data-sort")) return;
      var button = document.createElement("button");
      button.type = "button";
      button.title = head.title;
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        var body = table.tBodies[0];
        Array.prototype.slice.call(body.rows)
          .map(function (row, i) { return { row: row, key: key(row, column), i: i }; })
          .sort(function (a, b) {
            if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "") || a.i - b.i;
            return (down ? -1 : 1) * compare(a.key, b.key) || a.i - b.i;
          })
          .forEach(function (item) { body.appendChild(item.row); });
      });
    });
  });
})();
