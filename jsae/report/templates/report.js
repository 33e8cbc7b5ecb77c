/* The report's only script, a classic one: pages open from disk. Without it every page is complete; it adds
   heat maps, sorting, the table of features with its filters, and features side by side. It reads no
   storage, fetches nothing and writes text only as text. */
(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  /* ---- within a frame: no navigation inside, links lead out of it ---- */
  if (window.parent !== window) {
    document.documentElement.classList.add("framed");
    for (const link of all("a[href]:not([href^='#'])")) link.target = "_top";
  }
  document.documentElement.classList.add("scripted");
  for (const element of all("[data-needs-script]")) element.hidden = false;

  /* ---- heat maps: one byte per cell, 255 the feature's largest value ---- */
  const opacity = byId("opacity"), threshold = byId("threshold");
  const paint = (canvas) => {
    const context = canvas.getContext("2d");
    if (!context) return;
    [canvas.height, canvas.width] = canvas.closest("[data-grid]").dataset.grid.split(",").map(Number);
    const pixels = context.createImageData(canvas.width, canvas.height);
    const least = threshold ? threshold.value * 2.55 : 0, share = opacity ? opacity.value / 100 : 0.75;
    [...atob(canvas.dataset.map)].forEach((byte, i) => {
      const value = byte.charCodeAt(0);
      pixels.data.set([255, 140, 26, value > least ? Math.round(value * share) : 0], 4 * i);
    });
    context.putImageData(pixels, 0, 0);
  };
  const paintAll = () => all("canvas.heat").forEach(paint);
  for (const slider of [opacity, threshold].filter(Boolean)) {
    slider.addEventListener("input", () => {
      document.querySelector(`output[for=${slider.id}]`).textContent = `${slider.value}%`;
      paintAll();
    });
  }
  paintAll();
  for (const button of all("button[data-map]")) {
    button.addEventListener("click", () => {
      const article = button.closest("article"), canvas = article.querySelector("canvas.heat");
      const outline = article.querySelector(".cell").style, [x, y] = button.dataset.cell.split(",");
      canvas.dataset.map = button.dataset.map;
      outline.setProperty("--x", x);
      outline.setProperty("--y", y);
      for (const other of all("button[data-map]", article)) other.setAttribute("aria-pressed", other === button);
      paint(canvas);
    });
  }

  /* ---- sorting: a head becomes a button; unknown keys ("" or null) stay last, equal ones in their order ---- */
  const headButton = (head, onClick) => {
    const button = make("button", null, { type: "button", title: head.title });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", onClick);
  };
  const mark = (heads, head, down) => {
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? String(a).localeCompare(b) : a - b);
  const sorted = (items, key, down) => {
    const isUnknown = (value) => value === "" || value === null;
    return items
      .map((item) => ({ item, key: key(item) }))
      .sort((a, b) => isUnknown(a.key) - isUnknown(b.key) || (down ? -1 : 1) * compare(a.key, b.key))
      .map(({ item }) => item);
  };
  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], tbody = table.tBodies[0];
    heads.forEach((head, column) => {
      if (!("sort" in head.dataset)) return;
      headButton(head, () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        mark(heads, head, down);
        tbody.append(...sorted([...tbody.rows], key, down));
      });
    });
  }

  /* ---- deep links: #feature-12, #feature-12+40 ---- */
  const wanted = () => {
    const found = /^#feature-(\d+)(?:\+(?:feature-)?(\d+))?$/.exec(location.hash.replace(/%2B/gi, "+"));
    return found ? found.slice(1).filter((number) => number !== undefined).map(Number) : [];
  };
  if (document.body.dataset.page === "index" && wanted().length) location.replace(`features.html${location.hash}`);

  /* ---- the table of features ---- */
  const data = window.JSAE_FEATURES, table = byId("features");
  if (!data || !table) return;
  const PER_PAGE = 50;
  const tbody = table.tBodies[0], heads = all("th[data-column]", table);
  const withCrops = table.tHead.rows[0].cells.length - heads.length === 2;
  const rows = data.feature.map((_, i) => i), place = new Map(data.feature.map((feature, i) => [feature, i]));
  const state = { column: null, down: false, page: 0, whole: false };
  let shown = rows, picked = [];

  const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
  const className = (i) => (data.class[i] < 0 ? "" : data.classes[data.class[i]]);
  const known = (rank) => (rank < 0 ? null : rank);
  const key = (i) => {
    if (state.column === "feature") return data.feature[i];
    if (state.column === "class") return known(data.class[i]);
    return state.column === "part" ? data.part[i] : known(data.columns[state.column].rank[i]);
  };
  const filtered = () => {
    const text = byId("search").value.trim().toLowerCase(), chosen = byId("top-class").value;
    const kind = byId("kind").value, purity = Number(byId("purity").value) || 0;
    return rows.filter((i) =>
      (chosen === "" || data.class[i] === Number(chosen)) &&
      data.flags[i].includes(kind) &&
      (purity <= 0 || (data.purity16[i] !== null && data.purity16[i] >= purity - 1e-9)) &&
      (String(data.feature[i]) === text || [className(i), data.part?.[i] ?? ""].some((name) => name.toLowerCase().includes(text))));
  };
  const crops = (i) => {
    const cell = make("td", null, { class: "crops" });
    for (const [image, y, x] of data.crops[i]) {
      const span = make("span", null, { class: "crop", style: `--h:${data.grid[0]};--w:${data.grid[1]};--y:${y};--x:${x}` });
      span.append(make("img", null, { src: `images/${image}.jpg`, alt: "", loading: "lazy" }));
      cell.append(span);
    }
    return cell;
  };
  const makeRow = (i) => {
    const feature = data.feature[i], row = make("tr"), cell = make("td"), head = make("th", null, { scope: "row" });
    if (data.page[i]) {
      const tick = make("input", null, { type: "checkbox", "aria-label": `show feature ${feature} here` });
      tick.checked = picked.includes(feature);
      tick.addEventListener("change", () => {
        const others = picked.filter((other) => other !== feature);
        go(tick.checked ? [...others.slice(-1), feature] : others);
      });
      cell.append(tick);
      head.append(make("a", feature, { href: `features/feature-${feature}.html` }));
    } else head.textContent = feature;
    row.append(cell, head, ...(withCrops ? [crops(i)] : []), make("td", className(i) || "–", { class: "text" }));
    for (const { text, doc } of data.columns) row.append(text[i] ? make("td", text[i]) : make("td", "–", { title: doc }));
    if (data.part) row.append(make("td", data.part[i] || "–", { class: "text" }));
    return row;
  };
  const render = () => {
    const last = Math.max(0, Math.ceil(shown.length / PER_PAGE) - 1);
    state.page = Math.min(Math.max(state.page, 0), last);
    const first = state.whole ? 0 : state.page * PER_PAGE;
    const here = state.whole ? shown : shown.slice(first, first + PER_PAGE);
    tbody.replaceChildren(...here.map(makeRow));
    const range = `${grouped(first + 1)}–${grouped(first + here.length)} of ${grouped(shown.length)}`;
    byId("where").textContent = shown.length ? range : "none";
    byId("earlier").disabled = state.page === 0;
    byId("later").disabled = state.page === last;
  };
  const update = () => {
    shown = state.column === null ? filtered() : sorted(filtered(), key, state.down);
    state.page = 0;
    const by = heads.find((head) => head.hasAttribute("aria-sort"));
    const order = by ? `, by ${by.textContent}, ${state.down ? "largest" : "smallest"} first` : "";
    byId("status").textContent = `${grouped(shown.length)} of ${grouped(rows.length)} features${order}`;
    render();
  };
  const turn = (change) => { Object.assign(state, change); render(); };
  for (const head of heads) {
    headButton(head, () => {
      const name = head.dataset.column, rising = data.columns[name]?.rising ?? true;
      state.down = state.column === name ? !state.down : !rising;
      state.column = name;
      mark(heads, head, state.down);
      update();
    });
  }
  byId("filters").addEventListener("input", update);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(update, 0));
  byId("earlier").addEventListener("click", () => turn({ page: state.page - 1 }));
  byId("later").addEventListener("click", () => turn({ page: state.page + 1 }));
  window.addEventListener("beforeprint", () => turn({ whole: true }));
  window.addEventListener("afterprint", () => turn({ whole: false }));

  /* ---- one feature here, or two side by side ---- */
  const panel = byId("panel"), title = byId("panel-title");
  const go = (features) => {
    if (features.length) location.hash = `feature-${features.join("+")}`;
    else {
      history.replaceState(null, "", location.pathname + location.search);
      show();
    }
  };
  const show = () => {
    picked = wanted().filter((feature) => data.page[place.get(feature)]);
    byId("frames").replaceChildren(...picked.map((feature) =>
      make("iframe", null, { src: `features/feature-${feature}.html`, title: `Feature ${feature}` })));
    panel.hidden = !wanted().length;
    if (!panel.hidden) {
      title.textContent = `Feature ${picked.length ? picked.join(" beside feature ") : `${wanted()[0]} has no page here`}`;
      title.focus({ preventScroll: true });
      panel.scrollIntoView();
    }
    render();
  };
  byId("beside").addEventListener("submit", (event) => {
    event.preventDefault();
    const number = byId("beside-number").value;
    if (number !== "" && picked.length) go([picked[0], Number(number)]);
  });
  byId("panel-close").addEventListener("click", () => go([]));
  window.addEventListener("hashchange", show);
  update();
  if (wanted().length) show();
})();
