"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const figures = new Map(plots.map((plot) => [plot, JSON.parse(document.getElementById(plot.dataset.figure).textContent)]));

  // The figures carry no colours: the theme is read from the page's style sheet, so that light and dark have one source.
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: read("--line"), linecolor: read("--line"), zerolinecolor: read("--line"), tickcolor: read("--line"),
      zeroline: false, exponentformat: "power", automargin: true, ticks: "", nticks: 6,
    };
    return {
      axis,
      named: (name) => read(`--${name}`),
      muted: read("--muted"),
      layout: {
        font: { family: read("--sans"), size: 12, color: read("--muted") },
        colorway: ["--one", "--two", "--three", "--four"].map(read),
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 8, r: 12, t: 8, b: 8 }, height: 240, hovermode: "x unified",
        hoverlabel: { bgcolor: read("--paper"), bordercolor: read("--line"), font: { color: read("--ink") } },
        legend: { orientation: "h", y: -0.28, yanchor: "top", x: 0, font: { size: 11 } },
      },
    };
  }

  // A trace may name the colour it shares with others; a band is a wash of its colour.
  function coloured(trace, look) {
    const meta = trace.meta || {};
    if (meta.role === "reference") return { ...trace, line: { dash: "dot", width: 1.5, color: look.muted } };
    if (!meta.colour) return trace;
    const color = look.named(meta.colour);
    if (meta.role === "band") return { ...trace, fillcolor: `${color}26`, line: { ...trace.line, color } };
    return { ...trace, line: { ...trace.line, color }, marker: { ...trace.marker, color } };
  }

  function draw() {
    const look = theme();
    for (const [plot, figure] of figures) {
      const axis = (own) => ({ ...look.axis, ...own, title: { font: { size: 11 }, standoff: 6, ...(own && own.title) } });
      const layout = { ...look.layout, ...figure.layout, xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis) };
      const traces = figure.data.map((trace) => coloured(trace, look));
      Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true });
    }
    document.documentElement.dataset.drawn = "yes";
  }

  function filter() {
    const text = document.getElementById("filter-text");
    const tag = document.getElementById("filter-tag");
    const count = document.getElementById("filter-count");
    const samples = [...document.querySelectorAll(".sample")];
    const apply = () => {
      const wanted = text.value.trim().toLowerCase();
      let shown = 0;
      for (const sample of samples) {
        const fits = (!tag.value || sample.dataset.tag === tag.value) && sample.textContent.toLowerCase().includes(wanted);
        sample.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${samples.length} shown`;
    };
    text.addEventListener("input", apply);
    tag.addEventListener("change", apply);
    document.getElementById("filter").hidden = false;
    apply();
  }

  draw();
  dark.addEventListener("change", draw);
  if (document.getElementById("filter")) filter();
})();
