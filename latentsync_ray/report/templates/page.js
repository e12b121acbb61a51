"use strict";
{
  const { palettes, facts } = JSON.parse(document.getElementById("page-data").textContent);
  const darkScreen = window.matchMedia("(prefers-color-scheme: dark)");
  const paper = window.matchMedia("print");
  const paperWidth = 700; // of A4 between its margins, in CSS pixels
  const chosen = new Set();
  const shown = {}; // the metric that a chart shows instead of its first one
  const plots = [...document.querySelectorAll(".plot")];

  /** A chart's figure in the colours of the screen or of paper, with the chosen trials in front. */
  function figureOf(plot, onPaper) {
    let text = document.getElementById(`${plot.id}-data`).textContent;
    if (darkScreen.matches && !onPaper) {
      for (const [name, colour] of Object.entries(palettes.light)) text = text.replaceAll(colour, palettes.dark[name]);
    }
    const { data, layout, alternatives } = JSON.parse(text);
    const metric = shown[plot.id];
    if (metric) {
      data.forEach((trace, index) => { trace.y = alternatives[metric][index]; });
      layout.yaxis = { ...layout.yaxis, title: { text: metric } };
    }
    for (const trace of data) {
      if (trace.customdata) trace.text = trace.customdata.map((label) => facts[label] ?? "");
    }
    const front = chosen.size ? data.flatMap(chosenPart) : [];
    if (front.length) data.forEach((trace) => { trace.opacity = 0.3; });
    if (onPaper) layout.width = plot.closest(".panels") ? paperWidth / 2 - 10 : paperWidth;
    return { data: [...data, ...front], layout: { ...layout, uirevision: metric ?? "" } };
  }

  /** What a trace has of the chosen trials, larger; nothing if it has none of them. */
  function chosenPart(trace) {
    const indices = [];
    let before = false;
    (trace.customdata ?? []).forEach((label, index) => {
      const belongs = chosen.has(label);
      if (belongs || (before && trace.mode === "lines")) indices.push(index); // a line ends with its gap
      before = belongs;
    });
    if (!indices.length || trace.name === "Pareto front") return [];
    const pick = (values) => (Array.isArray(values) ? indices.map((index) => values[index]) : values);
    const part = { ...trace, x: pick(trace.x), y: pick(trace.y), text: pick(trace.text), customdata: pick(trace.customdata) };
    if (trace.line) part.line = { ...trace.line, width: 4 };
    if (trace.marker) {
      const { color, symbol, size } = trace.marker;
      part.marker = { ...trace.marker, color: pick(color), symbol: pick(symbol), size: pick(size).map((pixels) => pixels + 5) };
    }
    return [part];
  }

  function draw(plot, onPaper = paper.matches) {
    const { data, layout } = figureOf(plot, onPaper);
    Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true });
  }

  function drawAll(onPaper) {
    for (const plot of plots) draw(plot, onPaper);
  }

  // The table: choose, sort, filter

  const body = document.querySelector("#trials tbody");
  const rows = [...body.rows];
  const rowOf = new Map(rows.map((row) => [row.dataset.label, row]));
  const filter = document.getElementById("filter");
  const clear = document.getElementById("clear");

  function choose(label, wanted) {
    const row = rowOf.get(label);
    if (!row) return;
    row.querySelector("input").checked = wanted;
    row.classList.toggle("chosen", wanted);
    if (wanted) chosen.add(label);
    else chosen.delete(label);
  }

  function showChosen() {
    clear.disabled = chosen.size === 0;
    drawAll();
  }

  function sortBy(header) {
    const column = header.cellIndex;
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentNode.cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const keyed = rows.map((row) => {
      const cell = row.cells[column];
      return { row, number: Number.parseFloat(cell.dataset.order), text: cell.textContent.trim() };
    });
    const collator = new Intl.Collator("en", { numeric: true });
    const sign = ascending ? 1 : -1;
    keyed.sort((a, b) => {
      const [noA, noB] = [Number.isNaN(a.number), Number.isNaN(b.number)];
      if (noA && noB) return sign * collator.compare(a.text, b.text);
      return noA - noB || sign * (a.number - b.number); // what has no number comes last, either way
    });
    body.append(...keyed.map(({ row }) => row));
  }

  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  function applyFilter() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => texts.get(row).includes(word));
      count += !row.hidden;
    }
    const all = rows.length.toLocaleString("en");
    document.getElementById("count").textContent = words.length ? `${count.toLocaleString("en")} of ${all} trials` : `${all} trials`;
  }

  body.addEventListener("change", (event) => {
    choose(event.target.closest("tr").dataset.label, event.target.checked);
    showChosen();
  });
  clear.addEventListener("click", () => {
    for (const label of [...chosen]) choose(label, false);
    showChosen();
  });
  filter.addEventListener("input", applyFilter);
  for (const header of document.querySelectorAll("#trials th[aria-sort]")) {
    header.querySelector("button").addEventListener("click", () => sortBy(header));
  }

  // The charts

  if (plots.length) {
    drawAll();
    for (const plot of plots) {
      plot.on("plotly_click", ({ points }) => {
        const label = points[0].customdata;
        if (rowOf.has(label)) {
          choose(label, !chosen.has(label));
          showChosen();
        }
      });
    }
    darkScreen.addEventListener("change", () => drawAll());
    paper.addEventListener("change", () => drawAll());
    window.addEventListener("beforeprint", () => drawAll(true));
    window.addEventListener("afterprint", () => drawAll(false));
  }
  for (const select of document.querySelectorAll("select[data-chart]")) {
    select.addEventListener("change", () => {
      shown[select.dataset.chart] = select.value;
      draw(document.getElementById(select.dataset.chart));
    });
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentNode.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
        setTimeout(() => { button.textContent = "copy"; }, 1500);
      } catch {
        getSelection().selectAllChildren(code); // the browser lets no page copy: the user does
      }
    });
  }
}
