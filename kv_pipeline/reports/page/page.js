"use strict";
// Draws the page's figures and tables from the data in it. Nothing is loaded; all text goes in as text, never as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const page = JSON.parse(byId("data").textContent);
  const rowsOf = (name) => {
    const columns = page.frames[name];
    const names = Object.keys(columns);
    const height = names.length ? columns[names[0]].length : 0;
    return Array.from({ length: height }, (_, i) => Object.fromEntries(names.map((n) => [n, columns[n][i]])));
  };

  // --- Numbers for people -------------------------------------------------------------------------------------------
  // Formatters are kept: making one for every cell would take longer than everything else on the page.
  const digits = (n) => {
    const format = new Intl.NumberFormat("en-US", { minimumFractionDigits: n, maximumFractionDigits: n });
    return (value) => format.format(value);
  };
  const [whole, two, four] = [0, 2, 4].map(digits);
  const five = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 5 });
  const FORMATS = {
    int: whole,
    percent: (value) => `${two(value * 100)} %`,
    points: (value) => (value > 0 ? "+" : "") + two(value),
    usd: (value) => (value < 0 ? "-$" : "$") + (Math.abs(value) >= 100 ? two : four)(Math.abs(value)),
    seconds: (value) => (value < 100 ? two : whole)(value),
    number: (value) => five.format(value),
    flag: (value) => (value ? "yes" : "no"),
    text: String,
  };
  const shown = (value, kind) => (value === null || value === undefined || value === "" ? "-" : (FORMATS[kind] || FORMATS.text)(value));
  const isNumber = (kind) => ["int", "percent", "points", "usd", "seconds", "number"].includes(kind);
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const pairs = (entries) => {
    const list = element("dl");
    for (const [term, value] of entries) list.append(element("dt", term), element("dd", value));
    return list;
  };

  // --- What linked figures agree on ---------------------------------------------------------------------------------
  const requests = page.frames.requests ? rowsOf("requests") : [];
  const lastRequest = Math.max(0, ...requests.map((row) => row.request_index));
  const link = { first_request: 0, last_request: lastRequest, shown_agent: "" };
  let pointed = -1;
  const views = new Map();
  const linkedViews = () => [...views.values()].filter((view) => view.isLinked);
  const announce = (changes) => {
    Object.assign(link, changes);
    for (const view of linkedViews()) {
      for (const [name, value] of Object.entries(changes)) view.signal(name, value);
      view.runAsync().then(() => mark(view));
    }
    byId("reset").hidden = !requests.length || (link.first_request === 0 && link.last_request === lastRequest);
  };
  // A rule over each linked figure, as an element of its own: nothing has to be drawn again when it moves.
  const mark = (view) => {
    const isShown = pointed >= link.first_request && pointed <= link.last_request;
    const x = isShown ? view.origin()[0] + view.scale("x")(pointed) : 0;
    Object.assign(view.rule.style, {
      display: isShown ? "block" : "none",
      transform: `translate(${x}px, ${view.origin()[1]}px)`,
      height: `${view.signal("height")}px`,
    });
  };
  const point = (index) => {
    if (index === pointed) return;
    pointed = index;
    linkedViews().forEach(mark);
    const panel = byId("pointed");
    const row = requests[index];
    panel.hidden = !row;
    if (!row) return;
    panel.replaceChildren(pairs(page.pointed.map(([name, label, kind]) => [label, shown(row[name], kind)])));
    document.querySelectorAll("tr.pointed").forEach((tr) => tr.classList.remove("pointed"));
    document.querySelectorAll(`tr[data-request="${index}"]`).forEach((tr) => tr.classList.add("pointed"));
  };
  const requestAt = (view, event) => {
    const bounds = view.container().querySelector("canvas, svg").getBoundingClientRect();
    const x = event.clientX - bounds.left - view.origin()[0];
    if (x < 0 || x > view.signal("width")) return null;
    const index = Math.round(view.scale("x").invert(x));
    return index >= link.first_request && index <= link.last_request ? index : null;
  };
  const connected = new WeakSet();
  const connect = (name, target) => {
    if (connected.has(target)) return;
    connected.add(target);
    let from = null;
    const shade = element("div", undefined, "shade");
    target.parentElement.append(shade);
    target.addEventListener("pointermove", (event) => {
      const index = requestAt(views.get(name), event);
      if (index !== null) point(index);
      if (from === null) return;
      const [a, b] = [from.clientX, event.clientX].sort((p, q) => p - q);
      const { left } = target.parentElement.getBoundingClientRect();
      Object.assign(shade.style, { display: "block", left: `${a - left}px`, width: `${b - a}px` });
    });
    target.addEventListener("pointerdown", (event) => {
      const index = requestAt(views.get(name), event);
      if (index !== null && event.button === 0) from = { index, clientX: event.clientX };
    });
    window.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const to = requestAt(views.get(name), event);
      const start = from;
      from = null;
      shade.style.display = "none";
      tip.hidden = true;
      if (to === null || Math.abs(event.clientX - start.clientX) < 6 || to === start.index) return;
      announce({ first_request: Math.min(start.index, to), last_request: Math.max(start.index, to) });
    });
    target.addEventListener("dblclick", () => announce({ first_request: 0, last_request: lastRequest }));
  };

  // --- Figures ------------------------------------------------------------------------------------------------------
  const tip = byId("tip");
  const showTip = (_, event, item, value) => {
    if (value === null || value === undefined || value === "") {
      tip.hidden = true;
      return;
    }
    const entries = typeof value === "object" ? Object.entries(value) : [["", value]];
    tip.replaceChildren(pairs(entries.filter(([, v]) => v !== "" && v !== "null" && v !== "undefined" && v !== "NaN")));
    tip.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${event.clientY + height + 24 > innerHeight ? event.clientY - height - 12 : event.clientY + 16}px`;
  };
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(["ink", "soft", "line", "card"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  };
  const themed = (spec) => {
    const { ink, soft, line } = colours();
    const config = {
      background: null,
      axis: { domainColor: soft, tickColor: soft, gridColor: line, gridOpacity: 0.7, labelLimit: 380 },
      legend: { labelLimit: 300 },
      style: {
        cell: { stroke: line },
        "guide-label": { fill: ink, fontSize: 11 },
        "guide-title": { fill: soft, fontSize: 11, fontWeight: "normal" },
      },
    };
    return { ...spec, background: null, config: vega.mergeConfig({}, spec.config, config) };
  };
  const draw = async (target) => {
    const name = target.dataset.figure;
    views.get(name)?.finalize();
    const spec = structuredClone(window.kvFigures[name]);
    for (const source of spec.data || []) {
      if (page.frames[source.name]) source.values = rowsOf(source.name);
    }
    for (const signal of spec.signals || []) if (signal.name in link) signal.value = link[signal.name];
    target.replaceChildren();
    target.classList.remove("waiting");
    const view = new vega.View(vega.parse(themed(spec)), { renderer: "canvas", hover: true, logLevel: vega.Error });
    view.loader({ load: () => Promise.reject(new Error("This page loads nothing.")), sanitize: (uri) => Promise.resolve({ href: uri }) });
    view.tooltip(showTip).initialize(target);
    view.isLinked = (spec.signals || []).some((signal) => signal.name === "first_request");
    await view.runAsync();
    views.set(name, view);
    if (!view.isLinked) return;
    view.rule = element("div", undefined, "rule");
    target.append(view.rule);
    mark(view);
    connect(name, target);
  };
  const problem = (text) => document.body.prepend(element("p", text, "problem"));
  const inflate = async () => {
    const bytes = Uint8Array.from(atob(byId("library").textContent), (c) => c.charCodeAt(0));
    const stream = new Response(bytes).body.pipeThrough(new DecompressionStream("gzip"));
    const script = element("script", await new Response(stream).text());
    document.head.append(script);
  };
  const plots = () => [...document.querySelectorAll(".plot")];
  const tryDrawing = (target) => draw(target).catch((error) => problem(`Figure ${target.dataset.figure}: ${error.message}`));
  const drawWhenSeen = () => {
    const margin = 300;
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        tryDrawing(target);
      }
    }, { rootMargin: `${margin}px` });
    window.addEventListener("beforeprint", () => plots().filter((t) => t.classList.contains("waiting")).forEach(draw));
    const isNear = new Map(plots().map((target) => [target, target.getBoundingClientRect().top < innerHeight + margin]));
    for (const [target, near] of isNear) if (!near) seen.observe(target);
    return Promise.all([...isNear].filter(([, near]) => near).map(([target]) => tryDrawing(target)));
  };

  // --- Tables -------------------------------------------------------------------------------------------------------
  const compare = (a, b) => (typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b)) : a - b);
  const cell = (row, { name, kind, href }) => {
    const made = element("td", undefined, isNumber(kind) ? "number" : kind);
    if (href && row[href]) {
      const anchor = element("a", shown(row[name], kind));
      anchor.setAttribute("href", row[href]);
      made.append(anchor);
    } else {
      made.textContent = shown(row[name], kind);
    }
    return made;
  };
  const buildTable = (target) => {
    const { frame, columns } = page.tables[target.dataset.table];
    const rows = frame === "requests" ? requests : rowsOf(frame);
    const isRequests = frame === "requests";
    const table = element("table");
    const body = element("tbody");
    const lines = rows.map((row) => {
      const line = element("tr");
      line.append(...columns.map((column) => cell(row, column)));
      if (isRequests) {
        line.dataset.request = row.request_index;
        line.addEventListener("pointerenter", () => point(row.request_index));
      }
      return { row, line };
    });
    const head = element("tr");
    for (const { name, label, kind } of columns) {
      const heading = element("th", undefined, isNumber(kind) ? "number" : "");
      const button = element("button", label);
      button.type = "button";
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === (isNumber(kind) ? "none" : "ascending") || (isNumber(kind) && heading.getAttribute("aria-sort") === "ascending");
        for (const other of head.children) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const missing = ({ row }) => row[name] === null || row[name] === undefined;
        lines.sort((p, q) => missing(p) - missing(q) || (missing(p) ? 0 : (descending ? -1 : 1) * compare(p.row[name], q.row[name])));
        body.append(...lines.map(({ line }) => line));
      });
      head.append(heading);
    }
    body.append(...lines.map(({ line }) => line));
    const top = element("thead");
    top.append(head);
    table.append(top, body);
    if (rows.length > 15) {
      const find = element("input", undefined, "find");
      find.type = "search";
      find.placeholder = `Find in ${rows.length.toLocaleString("en-US")} rows`;
      find.setAttribute("aria-label", "Find rows");
      find.addEventListener("input", () => {
        const wanted = find.value.toLowerCase();
        for (const { line } of lines) line.hidden = !line.textContent.toLowerCase().includes(wanted);
      });
      target.before(find);
    }
    target.append(table);
  };

  // --- Controls -----------------------------------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (name) => {
    document.documentElement.dataset.theme = name;
    document.documentElement.style.colorScheme = name;
    byId("theme").textContent = name === "dark" ? "Light" : "Dark";
    for (const figure of views.keys()) draw(document.querySelector(`[data-figure="${figure}"]`));
  };
  const controls = () => {
    let chosen = null;
    setTheme(dark.matches ? "dark" : "light");
    dark.addEventListener("change", () => chosen || setTheme(dark.matches ? "dark" : "light"));
    byId("theme").addEventListener("click", () => {
      chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      setTheme(chosen);
    });
    byId("reset").addEventListener("click", () => announce({ first_request: 0, last_request: lastRequest }));
    const agents = new Map(requests.map((row) => [row.agent_id, row.agent]));
    byId("agent-control").hidden = agents.size < 2;
    for (const [id, label] of agents) {
      const option = element("option", label);
      option.value = id;
      byId("agent").append(option);
    }
    byId("agent").addEventListener("change", (event) => announce({ shown_agent: event.target.value }));
  };

  controls();
  const tables = [...document.querySelectorAll("[data-table]")];
  const isLong = (target) => page.tables[target.dataset.table].frame === "requests";
  tables.filter((target) => !isLong(target)).forEach(buildTable);
  const buildLong = () => tables.filter(isLong).forEach(buildTable); // last: figures should not wait for it
  if (!plots().length) buildLong();
  else if (typeof DecompressionStream === "undefined") {
    problem("Figures need a browser of 2023 or later; the tables below are complete.");
    buildLong();
  } else inflate().then(drawWhenSeen).catch((error) => problem(`Figures can't be drawn: ${error.message}`)).finally(buildLong);
})();
