/* The report's only script, a classic one: pages open from disk. Without it every page is complete; it adds
   heat maps, sorting, the table of features with its filters, and features side by side. It reads no
   storage, fetches nothing and writes text only as text. */
(function () {
  "use strict";
  var body = document.body;

  function all(selector, root) {
    return Array.prototype.slice.call((root || document).querySelectorAll(selector));
  }
  function byId(id) { return document.getElementById(id); }
  function make(tag, text, attributes) {
    var element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    for (var name in attributes || {}) element.setAttribute(name, attributes[name]);
    return element;
  }

  /* ---- within a frame: no navigation of its own, links lead out of it ---- */
  if (window.parent !== window) {
    document.documentElement.classList.add("framed");
    all("a[href]").forEach(function (link) {
      if (link.getAttribute("href").charAt(0) !== "#") link.target = "_top";
    });
  }
  document.documentElement.classList.add("scripted");
  all("[data-needs-script]").forEach(function (element) { element.hidden = false; });

  /* ---- heat maps: one byte a cell, 255 the feature's largest value ---- */
  var opacity = byId("opacity"), threshold = byId("threshold");
  function paint(canvas) {
    var context = canvas.getContext("2d");
    if (!context) return;
    var grid = canvas.closest("[data-grid]").getAttribute("data-grid").split(",");
    canvas.height = Number(grid[0]);
    canvas.width = Number(grid[1]);
    var bytes = atob(canvas.getAttribute("data-map")), pixels = context.createImageData(canvas.width, canvas.height);
    var least = threshold ? threshold.value * 2.55 : 0;
    for (var i = 0; i < bytes.length; i++) {
      var value = bytes.charCodeAt(i), on = value > least;
      pixels.data[4 * i] = 255;
      pixels.data[4 * i + 1] = 140;
      pixels.data[4 * i + 2] = 26;
      pixels.data[4 * i + 3] = on ? Math.round(value * (opacity ? opacity.value / 100 : 0.75)) : 0;
    }
    context.putImageData(pixels, 0, 0);
  }
  function paintAll() { all("canvas.heat").forEach(paint); }
  [opacity, threshold].forEach(function (slider) {
    if (!slider) return;
    slider.addEventListener("input", function () {
      var output = document.querySelector("output[for=" + slider.id + "]");
      if (output) output.textContent = slider.value + "%";
      paintAll();
    });
  });
  paintAll();
  all("button[data-map]").forEach(function (button) {
    button.addEventListener("click", function () {
      var article = button.closest("article"), canvas = article.querySelector("canvas.heat");
      canvas.setAttribute("data-map", button.getAttribute("data-map"));
      var cell = button.getAttribute("data-cell").split(",");
      var outline = article.querySelector(".cell");
      outline.style.setProperty("--x", cell[0]);
      outline.style.setProperty("--y", cell[1]);
      all("button[data-map]", article).forEach(function (other) {
        other.setAttribute("aria-pressed", String(other === button));
      });
      paint(canvas);
    });
  });

  /* ---- short tables: sorted in place by a click on a head ---- */
  function headButton(head, onClick) {
    var button = make("button", null, { type: "button" });
    if (head.title) button.title = head.title;
    while (head.firstChild) button.appendChild(head.firstChild);
    head.appendChild(button);
    button.addEventListener("click", onClick);
  }
  function sortKey(row, column) {
    var cell = row.cells[column];
    return cell.hasAttribute("data-value") ? cell.getAttribute("data-value") : cell.textContent.trim();
  }
  function compare(a, b) {
    var x = Number(a), y = Number(b);
    return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
  }
  all("table.sortable").forEach(function (table) {
    var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      if (!head.hasAttribute("data-sort")) return;
      headButton(head, function () {
        var down = head.getAttribute("aria-sort") === "ascending", tbody = table.tBodies[0];
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        Array.prototype.slice.call(tbody.rows)
          .map(function (row, i) { return { row: row, key: sortKey(row, column), i: i }; })
          .sort(function (a, b) {
            if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "") || a.i - b.i;
            return (down ? -1 : 1) * compare(a.key, b.key) || a.i - b.i;
          })
          .forEach(function (item) { tbody.appendChild(item.row); });
      });
    });
  });

  /* ---- deep links: #feature-12, #feature-12+40 ---- */
  function wanted() {
    var found = /^#feature-(\d+)(?:\+(?:feature-)?(\d+))?$/.exec(location.hash.replace(/%2B/gi, "+"));
    return found ? [Number(found[1])].concat(found[2] === undefined ? [] : [Number(found[2])]) : [];
  }
  if (body.getAttribute("data-page") === "index" && wanted().length) {
    location.replace("features.html" + location.hash);
  }

  /* ---- the table of features ---- */
  var data = window.JSAE_FEATURES, table = byId("features");
  if (!data || !table) return;
  var PER_PAGE = 50;
  var tbody = table.tBodies[0], heads = all("th[data-column]", table), withCrops = table.tHead.rows[0].cells.length;
  var state = { column: null, down: false, page: 0, whole: false };
  var rows = data.feature.map(function (_, i) { return i; }), shown = rows, picked = [];
  var place = {};
  data.feature.forEach(function (feature, i) { place[feature] = i; });
  withCrops = withCrops - heads.length === 2;

  function grouped(n) { return String(n).replace(/\B(?=(\d{3})+$)/g, ","); }
  function className(i) { return data["class"][i] < 0 ? "" : data.classes[data["class"][i]]; }
  function filtered() {
    var text = byId("search").value.trim().toLowerCase(), chosen = byId("top-class").value;
    var kind = byId("kind").value, purity = Number(byId("purity").value) || 0;
    return rows.filter(function (i) {
      if (chosen !== "" && data["class"][i] !== Number(chosen)) return false;
      if (kind && data.flags[i].indexOf(kind) < 0) return false;
      if (purity > 0 && !(data.purity16 && data.purity16[i] !== null && data.purity16[i] >= purity - 1e-9)) return false;
      if (!text) return true;
      if (/^\d+$/.test(text) && String(data.feature[i]) === text) return true;
      if (className(i).toLowerCase().indexOf(text) >= 0) return true;
      return Boolean(data.part && data.part[i] && data.part[i].toLowerCase().indexOf(text) >= 0);
    });
  }
  function order(list) {
    var name = state.column, sign = state.down ? -1 : 1;
    if (name === null) return list;
    function key(i) {
      if (name === "feature") return data.feature[i];
      if (name === "class") return data["class"][i];
      if (name === "part") return data.part[i] || "";
      return data.columns[name].rank[i];
    }
    function unknown(value) { return value === "" || (value === -1 && name !== "feature"); }
    return list.slice().sort(function (a, b) {
      var x = key(a), y = key(b);
      if (unknown(x) || unknown(y)) return unknown(x) - unknown(y) || a - b;
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y) || a - b;
    });
  }
  function crops(i) {
    var cell = make("td", null, { "class": "crops" });
    (data.crops[i] || []).forEach(function (crop) {
      var span = make("span", null, { "class": "crop" });
      span.style.setProperty("--h", data.grid[0]);
      span.style.setProperty("--w", data.grid[1]);
      span.style.setProperty("--y", crop[1]);
      span.style.setProperty("--x", crop[2]);
      span.appendChild(make("img", null, { src: "images/" + crop[0] + ".jpg", alt: "", loading: "lazy" }));
      cell.appendChild(span);
    });
    return cell;
  }
  function makeRow(i) {
    var feature = data.feature[i], row = make("tr"), cell = make("td"), head = make("th", null, { scope: "row" });
    if (data.page[i]) {
      var tick = make("input", null, { type: "checkbox", "aria-label": "show feature " + feature + " here" });
      tick.checked = picked.indexOf(feature) >= 0;
      tick.addEventListener("change", function () { pick(feature, tick.checked); });
      cell.appendChild(tick);
      head.appendChild(make("a", feature, { href: "features/feature-" + feature + ".html" }));
    } else {
      head.textContent = feature;
    }
    row.appendChild(cell);
    row.appendChild(head);
    if (withCrops) row.appendChild(crops(i));
    row.appendChild(make("td", className(i) || "–", { "class": "text" }));
    data.columns.forEach(function (column) {
      var text = column.text[i];
      row.appendChild(text === "" ? make("td", "–", { title: column.reason }) : make("td", text));
    });
    if (data.part) row.appendChild(make("td", data.part[i] || "–", { "class": "text" }));
    return row;
  }
  function render() {
    var last = Math.max(0, Math.ceil(shown.length / PER_PAGE) - 1);
    state.page = Math.min(Math.max(state.page, 0), last);
    var first = state.whole ? 0 : state.page * PER_PAGE;
    var here = state.whole ? shown : shown.slice(first, first + PER_PAGE);
    var fragment = document.createDocumentFragment();
    here.forEach(function (i) { fragment.appendChild(makeRow(i)); });
    tbody.textContent = "";
    tbody.appendChild(fragment);
    var end = first + here.length;
    byId("where").textContent = shown.length ? grouped(first + 1) + "–" + grouped(end) + " of " + grouped(shown.length) : "none";
    byId("earlier").disabled = state.page === 0;
    byId("later").disabled = state.page === last;
  }
  function update() {
    shown = order(filtered());
    state.page = 0;
    var sorted = heads.filter(function (head) { return head.hasAttribute("aria-sort"); })[0];
    byId("status").textContent = grouped(shown.length) + " of " + grouped(rows.length) + " features" +
      (sorted ? ", by " + sorted.textContent + (state.down ? ", largest first" : ", smallest first") : "");
    render();
  }
  heads.forEach(function (head) {
    var name = head.getAttribute("data-column"), numeric = /^\d+$/.test(name);
    headButton(head, function () {
      var again = state.column === name;
      state.down = again ? !state.down : numeric && !data.columns[name].rising;
      state.column = name;
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      update();
    });
  });
  var filters = byId("filters");
  filters.addEventListener("input", update);
  filters.addEventListener("submit", function (event) { event.preventDefault(); });
  filters.addEventListener("reset", function () { setTimeout(update, 0); });
  byId("earlier").addEventListener("click", function () { state.page--; render(); });
  byId("later").addEventListener("click", function () { state.page++; render(); });
  window.addEventListener("beforeprint", function () { state.whole = true; render(); });
  window.addEventListener("afterprint", function () { state.whole = false; render(); });

  /* ---- one feature here, or two side by side ---- */
  var panel = byId("panel"), frames = byId("frames");
  function pick(feature, on) {
    var now = picked.filter(function (other) { return other !== feature; });
    if (on) now = now.slice(-1).concat([feature]);
    go(now);
  }
  function go(features) {
    if (features.length) location.hash = "feature-" + features.join("+");
    else {
      history.replaceState(null, "", location.pathname + location.search);
      show();
    }
  }
  function show() {
    picked = wanted().filter(function (feature) { return place[feature] !== undefined && data.page[place[feature]]; });
    frames.textContent = "";
    panel.hidden = !wanted().length;
    if (!panel.hidden) {
      var title = picked.length ? "Feature " + picked.join(" beside feature ") : "Feature " + wanted()[0] + " has no page here";
      byId("panel-title").textContent = title;
      picked.forEach(function (feature) {
        frames.appendChild(make("iframe", null, { src: "features/feature-" + feature + ".html", title: "Feature " + feature }));
      });
      byId("panel-title").focus({ preventScroll: true });
      panel.scrollIntoView();
    }
    render();
  }
  byId("beside").addEventListener("submit", function (event) {
    event.preventDefault();
    var number = byId("beside-number").value;
    if (number !== "" && picked.length) go([picked[0], Number(number)]);
  });
  byId("panel-close").addEventListener("click", function () { go([]); });
  window.addEventListener("hashchange", show);
  update();
  if (wanted().length) show();
})();
