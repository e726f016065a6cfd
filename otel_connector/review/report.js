// The script of the report: draws the charts, shows the same period in all charts over time, sorts and searches tables.
// Texts of the log are set as `textContent` only.
"use strict";
(() => {
  const { datasets, charts } = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });

  // Charts

  let chosenScheme = null; // null: that of the system
  let views = new Map(); // by the name of the chart
  let period = null; // [from, to] in milliseconds; null for the whole period
  let whole = null;
  let drawing = 0;

  const scheme = () => chosenScheme ?? (prefersDark.matches ? "dark" : "light");

  async function draw() {
    const number = ++drawing;
    const specs = Object.entries(charts[scheme()] ?? {});
    const drawn = new Map();
    for (const [name, spec] of specs) {
      const element = document.getElementById(`chart-${name}`);
      const result = await vegaEmbed(element, fitted(spec, element.clientWidth), {
        ast: true, // without eval, which the Content Security Policy forbids
        actions: false,
        defaultStyle: false,
        renderer: "canvas",
        tooltip: showTip,
      });
      if (number !== drawing) return result.finalize(); // the scheme was changed in the meantime
      views.get(name)?.finalize();
      views.set(name, result);
      drawn.set(name, result);
    }
    views = drawn;
    root.dataset.drawn = scheme();
    for (const { view } of linked()) link(view);
    for (const [name, { view }] of views) view.addEventListener("click", (_, item) => clicked(name, item));
    show(period, null);
  }

  function fitted(spec, width) {
    const copy = structuredClone(spec);
    copy.datasets = datasets;
    const { legend, axisY } = copy.config;
    if (width > 900) legend.columns = 8;
    if (width < 450) {
      Object.assign(legend, { columns: 2, labelLimit: 120 });
      axisY.labelLimit = 170;
    } else if (width < 700) legend.labelLimit = 100;
    return copy;
  }

  // The period, which all charts over time share

  const signals = ["period_t", "period_middle"];
  const signalOf = (view) => signals.find((name) => name in view.getState({ signals: () => true, data: () => false }).signals);

  function linked() {
    return [...views.values()].map(({ view }) => ({ view, signal: signalOf(view) })).filter(({ signal }) => signal);
  }

  function link(view) {
    whole ??= view.scale("x").domain().map(Number);
    view.addSignalListener(signalOf(view), (_, value) => show(value && value.map(Number), view));
  }

  function show(value, source) {
    if (source && String(value) === String(period)) return; // caused by our own change
    period = value;
    for (const { view, signal } of linked()) {
      if (view !== source) view.signal(signal, value).runAsync();
    }
    const [from, to] = value ?? whole ?? [];
    const digits = to - from < 10_000 ? 23 : 19; // with milliseconds, or without
    shown.textContent = from === undefined ? "" : `${clock(from, digits)} to ${clock(to, digits)} ${document.body.dataset.zone}`;
  }

  const clock = (time, digits) => new Date(time).toISOString().slice(0, digits).replace("T", " ");
  const shown = make("p");
  shown.setAttribute("aria-live", "polite");

  function zoom(factor) {
    const [from, to] = period ?? whole;
    const middle = (from + to) / 2;
    const half = ((to - from) / 2) * factor;
    if (half * 2 >= whole[1] - whole[0]) show(null, null);
    else show(inside(middle - half, middle + half), null);
  }

  function move(share) {
    const [from, to] = period ?? whole;
    show(inside(from + (to - from) * share, to + (to - from) * share), null);
  }

  function inside(from, to) {
    const over = Math.max(whole[0] - from, 0) - Math.max(to - whole[1], 0);
    return [from + over, to + over];
  }

  function addMoves() {
    const bar = document.getElementById("moves");
    if (!bar) return;
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Period shown");
    const moves = [
      ["Zoom in", () => zoom(0.5)],
      ["Zoom out", () => zoom(2)],
      ["Earlier", () => move(-0.5)],
      ["Later", () => move(0.5)],
      ["Whole period", () => show(null, null)],
    ];
    for (const [name, act] of moves) {
      const button = make("button", name);
      button.type = "button";
      button.title = "Or drag a chart, or turn the wheel with Ctrl over it; a double click shows the whole period";
      button.addEventListener("click", act);
      bar.append(button);
    }
    bar.append(shown);
    bar.hidden = false;
  }

  // Tooltip

  const tip = make("div");
  tip.id = "tip";
  tip.hidden = true;

  function showTip(_, event, __, value) {
    tip.hidden = !value || typeof value !== "object";
    if (tip.hidden) return;
    const list = make("dl");
    for (const [name, text] of Object.entries(value)) list.append(make("dt", name), make("dd", String(text)));
    tip.replaceChildren(list);
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16;
    tip.style.left = `${Math.max(left, 4)}px`;
    tip.style.top = `${Math.max(Math.min(event.clientY + 16, innerHeight - height - 4), 4)}px`;
  }

  // Colour scheme

  function addSchemeButton() {
    const button = document.getElementById("scheme");
    const name = () => (button.textContent = scheme() === "dark" ? "Light colours" : "Dark colours");
    button.addEventListener("click", () => {
      chosenScheme = scheme() === "dark" ? "light" : "dark";
      root.dataset.scheme = chosenScheme;
      name();
      draw();
    });
    prefersDark.addEventListener("change", () => {
      name();
      if (!chosenScheme) draw();
    });
    name();
    button.hidden = false;
  }

  // Tables

  function enhance(table) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    heads.forEach((head, column) => {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const numbers = head.classList.contains("number");
        const now = head.getAttribute("aria-sort");
        const next = now === "none" ? (numbers ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
        for (const each of heads) each.setAttribute("aria-sort", each === head ? next : "none");
        const sign = next === "ascending" ? 1 : -1;
        body.append(...rows.sort((a, b) => sign * compare(a.cells[column], b.cells[column])));
      });
    });
    search(table, rows);
  }

  function compare(a, b) {
    if ("order" in a.dataset) return a.dataset.order - b.dataset.order;
    return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  }

  // A row is shown if it matches the search of its table and the bar that was clicked

  const fewRows = 10; // a table without a search box
  const updates = []; // one function for each table: hides the rows that do not match
  let chosenBar = null; // { text, matches }
  const chosen = make("p"); // below the chart that was clicked: what is chosen, links to the tables, a button
  chosen.className = "chosen";
  chosen.setAttribute("role", "status");

  function clicked(chart, item) {
    const bar = item?.datum;
    if (bar?.error !== undefined) choose(`Class: ${bar.error}`, (data) => data.class === bar.error);
    else if (bar?.t !== undefined && bar.end !== undefined) {
      const digits = bar.end - bar.t < 1_000 ? 23 : 19;
      choose(`Started from ${clock(bar.t, digits)} to ${clock(bar.end, digits)}`, ({ t }) => t >= bar.t && t < bar.end);
    } else return;
    document.getElementById(`chart-${chart}`).after(chosen);
    chosen.scrollIntoView({ block: "nearest" });
    tip.hidden = true; // it would cover the line
  }

  function choose(text, matches) {
    chosenBar = text ? { text, matches } : null;
    chosen.replaceChildren();
    for (const update of updates) {
      const link = update();
      if (link && chosenBar) chosen.append(chosen.hasChildNodes() ? ", " : `${text}: `, link);
    }
    if (chosenBar) chosen.append(" ", removing("Show all calls"));
  }

  function removing(text) {
    const button = make("button", text);
    button.type = "button";
    button.title = "Show all calls again";
    button.addEventListener("click", () => choose("", null));
    return button;
  }

  function search(table, rows) {
    const what = table.dataset.rows;
    const line = make("div");
    line.className = "search";
    const label = make("label", `Search ${what}`);
    const input = make("input");
    input.type = "search";
    input.autocomplete = "off";
    input.spellcheck = false;
    const found = make("output");
    const bar = removing("");
    const none = make("p", `None of the ${what} listed here matches.`);
    const ofCalls = rows.some((row) => row.dataset.t !== undefined);
    const update = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = `${row.textContent} ${row.dataset.endpoint ?? ""}`.toLowerCase();
        const matches = !ofCalls || !chosenBar || chosenBar.matches(row.dataset);
        row.hidden = !matches || !words.every((word) => text.includes(word));
        count += !row.hidden;
      }
      bar.hidden = !ofCalls || !chosenBar;
      bar.textContent = chosenBar ? `${chosenBar.text} \u2715` : "";
      found.textContent = `${count} of ${rows.length}`;
      line.hidden = rows.length <= fewRows && bar.hidden;
      none.hidden = count > 0 || !rows.length;
      table.parentElement.hidden = !none.hidden;
      const link = make("a", `${found.textContent} ${what}`);
      link.href = `#${table.closest("section").id}`;
      return ofCalls && link;
    };
    label.hidden = rows.length <= fewRows;
    input.addEventListener("input", update);
    updates.push(update);
    label.append(input);
    line.append(label, bar, found);
    table.parentElement.before(line, none);
    update();
  }

  document.body.append(tip);
  addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  narrow.addEventListener("change", draw);
  addSchemeButton();
  addMoves();
  document.querySelectorAll("table[data-rows]").forEach(enhance);
  draw();
})();
