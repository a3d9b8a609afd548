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

const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
let chart = null;

function drawChart() {
  const holder = document.getElementById("chart");
  if (!holder || typeof uPlot === "undefined") return;
  const text = holder.dataset.series;
  if (chart && chart.text === text) return;
  const series = JSON.parse(text);
  if (chart) {
    chart.plot.setData(series);
    chart.text = text;
    return;
  }
  const canvas = document.getElementById("canvas");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const bars = uPlot.paths.bars({ size: [0.7, 40] });
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const options = {
    width: canvas.clientWidth || 300,
    height: 180,
    legend: { show: false },
    cursor: { show: false },
    scales: { y: { range: (_, low, high) => [0, Math.max(high, 4)] } },
    axes: [{ ...axis, values: (_, moments) => moments.map((at) => clock.format(at * 1000)) }, { ...axis, size: 36, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }],
    series: [
      {},
      { label: "made", fill: colour("--accent"), stroke: colour("--accent"), width: 0, paths: bars, points: { show: false } },
      { label: "failed", fill: colour("--bad"), stroke: colour("--bad"), width: 0, paths: bars, points: { show: false } },
    ],
  };
  chart = { plot: new uPlot(options, series, canvas), text };
  new ResizeObserver(() => chart.plot.setSize({ width: canvas.clientWidth, height: 180 })).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    chart.plot.destroy();
    chart = null;
    drawChart();
  });
}

function refresh() {
  tellTimes();
  drawChart();
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

document.querySelector(".top [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
refresh();
const live = document.getElementById("main");
// Told before the next picture is painted: nothing flickers.
new MutationObserver(refresh).observe(live, { childList: true, characterData: true, subtree: true, attributes: true, attributeFilter: ["datetime", "data-series"] });
setInterval(tellTimes, 1000);
