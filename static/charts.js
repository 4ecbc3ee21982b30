// Draws what was measured. The page has a table of each chart; this fetches the points and draws them over it, and asks
// again while the page is seen.
"use strict";

(() => {
  const root = document.querySelector("[data-charts]");
  if (!root || !window.uPlot) return;
  const words = document.querySelector("#words").dataset;
  const SHORT = /span=1h/.test(root.dataset.charts);
  const plots = new Map();

  const bytes = (value) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
  };
  const told = {
    percent: (value) => `${value < 10 ? value.toFixed(1).replace(/\.0$/, "") : Math.round(value)} %`,
    bytes,
    bytes_per_second: (value) => `${bytes(value)}/s`,
    celsius: (value) => `${Math.round(value)} °C`,
    watts: (value) => `${Math.round(value)} W`,
  };
  // Steps of an axis: of bytes, those that people read easily are powers of two.
  const binary = Array.from({ length: 50 }, (_, power) => 2 ** power);

  const style = () => {
    const all = getComputedStyle(document.documentElement);
    const get = (name) => all.getPropertyValue(name).trim();
    return { lines: [1, 2, 3, 4, 5, 6, 7, 8].map((n) => get(`--c${n}`)), ink: get("--ink-3"), grid: get("--line"), font: `11px ${get("--sans")}` };
  };

  const hour = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const color = (look, place) => look.lines[place % look.lines.length];

  const keys = (figure, chart, look, at) => {
    const entries = chart.lines.map((line, place) => {
      const entry = document.createElement("span");
      const mark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      mark.setAttribute("viewBox", "0 0 10 10");
      mark.setAttribute("aria-hidden", "true");
      for (const [name, value] of [["cx", 5], ["cy", 5], ["r", 5], ["fill", color(look, place)]]) dot.setAttribute(name, value);
      mark.append(dot);
      const known = at === null ? line.values.findLast((value) => value !== null) : line.values[at];
      const text = known === null || known === undefined ? words.none : told[chart.unit](known);
      entry.append(mark, chart.lines.length > 1 ? `${line.name} ${text}` : text);
      return entry;
    });
    const one = chart.lines.length === 1;
    figure.querySelector(".keys").replaceChildren(...(one ? [] : entries));
    if (one) figure.querySelector(".now").textContent = entries[0].textContent;
  };

  const draw = (figure, chart, times) => {
    const look = style();
    const place = figure.querySelector(".plot");
    const data = [times, ...chart.lines.map((line) => line.values)];
    const known = plots.get(chart.key);
    if (known && known.lines === chart.lines.length) {
      known.chart = chart;
      known.plot.setData(data);
      keys(figure, chart, look, null);
      return;
    }
    known?.plot.destroy();
    const entry = { chart, lines: chart.lines.length };
    const size = () => ({ width: Math.max(place.parentElement.clientWidth - 16, 120), height: 152 });
    const axis = { stroke: look.ink, font: look.font, grid: { stroke: look.grid, width: 1 }, ticks: { show: false } };
    const isBytes = chart.unit.startsWith("bytes");
    place.replaceChildren();
    // The place has its height only once something is in it.
    const holder = document.createElement("div");
    place.append(holder);
    entry.plot = new uPlot({
      ...size(),
      legend: { show: false },
      cursor: { y: false, points: { size: 6 }, drag: { setScale: false, x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, chart.top ?? Math.max(high * 1.08, isBytes ? 1024 : 1)] } },
      axes: [
        { ...axis, size: 26, gap: 2, values: (_, splits, __, ___, step) => splits.map((at) => (step < 86400 ? hour : day).format(at * 1000)) },
        { ...axis, size: 58, gap: 4, incrs: isBytes ? binary : undefined, splits: undefined, values: (_, splits) => splits.map((value) => (value === null ? "" : told[chart.unit](value))) },
      ],
      series: [{}, ...chart.lines.map((_, line) => ({
        stroke: color(look, line),
        width: 1.5,
        fill: chart.lines.length === 1 ? `${color(look, line)}22` : undefined,
        points: { show: false },
        spanGaps: false,
      }))],
      hooks: { setCursor: [(plot) => keys(figure, entry.chart, look, plot.cursor.idx ?? null)] },
    }, data, holder);
    plots.set(chart.key, entry);
    keys(figure, chart, look, null);
    entry.watch = new ResizeObserver(() => {
      const now = size();
      if (Math.abs(now.width - entry.plot.width) > 2) entry.plot.setSize(now);
    });
    entry.watch.observe(figure);
  };

  // What comes are changes, in steps.
  const known = ({ step, changes }) => {
    let sum = 0;
    return changes.map((by) => (by === null ? null : (sum += by) * step));
  };

  // One chart at a time: between two the page answers.
  const show = async ({ since_ms, step_ms, charts }) => {
    for (const chart of charts) {
      for (const line of chart.lines) line.values ??= known(line);
      const figure = document.getElementById(`chart-${chart.key}`);
      if (!figure) continue;
      const count = Math.max(...chart.lines.map((line) => line.values.length));
      const times = Array.from({ length: count }, (_, place) => (since_ms + place * step_ms) / 1000);
      for (const line of chart.lines) while (line.values.length < count) line.values.push(null);
      await new Promise((go) => setTimeout(go));
      draw(figure, chart, times);
    }
  };

  const clear = () => {
    for (const entry of plots.values()) { entry.watch?.disconnect(); entry.plot.destroy(); }
    plots.clear();
  };

  // A page that had nothing to show yet takes its charts from the same page as it is now.
  const begin = async () => {
    const answer = await fetch(location.href);
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-charts]");
    if (!fresh?.childElementCount) return;
    clear();
    if (!root.previousElementSibling.matches(".head")) root.previousElementSibling.remove();
    root.replaceChildren(...fresh.children);
  };

  let newest = null;
  const fetchAll = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(root.dataset.charts);
      if (!answer.ok) return;
      newest = await answer.json();
      if (newest.charts.length > root.childElementCount) await begin();
      await show(newest);
    } catch { /* The next try may find it again; the table is there meanwhile. */ }
  };

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    clear();
    if (newest) show(newest);
  });
  document.addEventListener("visibilitychange", fetchAll);
  setInterval(fetchAll, SHORT ? 10_000 : 60_000);
  fetchAll();
})();
