// Pages work without this. With it times are told as people tell them, charts are drawn, and a page keeps itself up to date.

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const exact = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium" });

function tell(seconds) {
  if (Math.abs(seconds) < 2) return "now";
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size);
  return relative.format(Math.trunc(seconds / size), unit);
}

function tellTimes() {
  const now = Date.now();
  for (const element of document.querySelectorAll("time[datetime]")) {
    const at = Date.parse(element.dateTime);
    if (Number.isNaN(at)) continue;
    const told = tell((at - now) / 1000);
    if (element.textContent !== told) element.textContent = told;
    const title = exact.format(at);
    if (element.title !== title) element.title = title;
  }
}

// Charts: each holder has its kind, its series as JSON, and a canvas that outlives what is around it.
const minute = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", timeZone: "UTC" });
const KINDS = {
  minutes: { step: 60, label: minute, axis: { size: 36, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }, least: 4 },
  days: { step: 86400, label: day, axis: { size: 56 }, least: 0, zone: "Etc/UTC" },
};
const charts = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function makeChart(canvas, kind, series) {
  const { step, label, axis, least, zone } = KINDS[kind];
  const paths = uPlot.paths.bars({ size: [0.7, 40] });
  const look = { size: 28, stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const bars = (name) => ({ fill: colour(name), stroke: colour(name), width: 0, paths, points: { show: false } });
  const options = {
    width: canvas.clientWidth || 300,
    height: 180,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { range: (_, low, high) => [low - step / 2, high + step / 2] }, y: { range: (_, low, high) => [0, Math.max(high * 1.05, least)] } },
    axes: [{ ...look, incrs: [1, 2, 5, 10, 15, 30, 60, 90].map((count) => count * step), values: (_, moments) => moments.map((at) => label.format(at * 1000)) }, { ...look, ...axis }],
    series: [{}, bars("--accent"), bars("--bad")].slice(0, series.length),
    ...(zone && { tzDate: (at) => uPlot.tzDate(new Date(at * 1000), zone) }),
  };
  return new uPlot(options, series, canvas);
}

function drawCharts() {
  if (typeof uPlot === "undefined") return;
  for (const [canvas, chart] of charts) {
    if (canvas.isConnected) continue;
    chart.watch.disconnect();
    chart.plot.destroy();
    charts.delete(canvas);
  }
  for (const holder of document.querySelectorAll(".chart[data-series]")) {
    const canvas = holder.querySelector(".canvas");
    const text = holder.dataset.series;
    const chart = charts.get(canvas);
    if (chart?.text === text) continue;
    const series = JSON.parse(text);
    if (chart) {
      chart.plot.setData(series);
      chart.text = text;
      continue;
    }
    const made = { plot: makeChart(canvas, holder.dataset.kind, series), text };
    made.watch = new ResizeObserver(() => made.plot.setSize({ width: canvas.clientWidth, height: 180 }));
    made.watch.observe(canvas);
    charts.set(canvas, made);
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const { plot, watch } of charts.values()) {
    watch.disconnect();
    plot.destroy();
  }
  charts.clear();
  drawCharts();
});

function refresh() {
  tellTimes();
  drawCharts();
}

// What a person has opened stays open when the page brings itself up to date.
htmx.registerExtension("keep-open", {
  htmx_before_morph_attr: (element, detail) => !(detail.attrName === "open" && element.tagName === "DETAILS"),
});

const connection = document.getElementById("connection");
addEventListener("htmx:sse:error", () => { connection.hidden = false; });
addEventListener("htmx:sse:after:connection", () => { connection.hidden = true; });

for (const link of document.querySelectorAll("a[data-back]")) {
  link.addEventListener("click", (event) => {
    if (history.length < 2) return;
    event.preventDefault();
    history.back();
  });
}

// Who chooses a provider, an operation or a model gets its example; what a person has written into the input stays.
const trying = document.querySelector("form[data-examples]");

function followExamples(form) {
  const examples = JSON.parse(form.dataset.examples);
  const { provider, operation, model, media, input } = form.elements;
  const options = [...document.querySelectorAll("datalist option[data-provider]")].map((option) => [option, option.parentElement]);
  const offer = () => {
    for (const [option, list] of options) {
      if (option.dataset.provider === provider.value) list.append(option);
      else option.remove();
    }
  };
  const fill = (...names) => {
    const example = examples.find((each) => names.every((name) => each[name] === form.elements[name].value));
    if (!example) return;
    for (const field of [operation, model, media]) field.value = example[field.name];
    if (!input.value.trim() || examples.some((each) => each.input === input.value)) input.value = example.input;
  };
  provider.addEventListener("change", () => { offer(); fill("provider"); });
  operation.addEventListener("change", () => fill("provider", "operation"));
  model.addEventListener("change", () => fill("provider", "model"));
  offer();
}

if (trying) followExamples(trying);
document.querySelector(".top [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
refresh();
const live = document.getElementById("main");
// Told before the next picture is painted: nothing flickers.
new MutationObserver(refresh).observe(live, { childList: true, characterData: true, subtree: true, attributes: true, attributeFilter: ["datetime", "data-series"] });
setInterval(tellTimes, 1000);
