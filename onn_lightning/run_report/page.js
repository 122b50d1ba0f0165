"use strict";
// Values under the pointer in all charts at once; series that can be hidden; charts that can be enlarged.
(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent).map((data) => {
    const figure = document.getElementById(data.key);
    const entries = [...figure.querySelectorAll(".legend li")].slice(0, data.series.length);
    return {
      ...data, figure, entries,
      svg: figure.querySelector("svg"),
      pointer: figure.querySelector(".pointer"),
      drawn: [...figure.querySelectorAll(".series")],
      newest: entries.map((entry) => entry.querySelector("b").textContent),
    };
  });
  if (!charts.length) return;

  const now = document.createElement("div");
  now.className = "step-now";
  now.hidden = true;
  now.setAttribute("aria-hidden", "true");
  document.body.append(now);

  const shown = (value) => {
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return String(Number(value.toPrecision(3)));
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  };
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  };
  const follow = (step) => {
    document.body.classList.add("following");
    now.hidden = false;
    now.textContent = `step ${Math.round(step).toLocaleString("en")}`;
    for (const chart of charts) {
      const part = (step - chart.first) / (chart.last - chart.first);
      const x = chart.width * (chart.left + part * (chart.right - chart.left));
      chart.pointer.setAttribute("x1", x);
      chart.pointer.setAttribute("x2", x);
      chart.series.forEach((series, place) => {
        const at = nearest(series.steps, step);
        chart.entries[place].querySelector("b").textContent = series.steps.length ? shown(series.values[at]) : "–";
      });
    }
  };
  const leave = () => {
    document.body.classList.remove("following");
    now.hidden = true;
    for (const chart of charts) {
      chart.newest.forEach((text, place) => { chart.entries[place].querySelector("b").textContent = text; });
    }
  };

  let waiting = null;
  for (const chart of charts) {
    const within = (step) => Math.min(chart.last, Math.max(chart.first, step));
    let current = chart.last;
    chart.svg.addEventListener("pointermove", (event) => {
      const box = chart.svg.getBoundingClientRect();
      const part = ((event.clientX - box.left) / box.width - chart.left) / (chart.right - chart.left);
      current = within(chart.first + part * (chart.last - chart.first));
      if (waiting === null) waiting = requestAnimationFrame(() => { waiting = null; follow(current); });
    });
    const stop = () => {
      if (waiting !== null) cancelAnimationFrame(waiting);
      waiting = null;
      leave();
    };
    chart.svg.addEventListener("pointerleave", stop);
    chart.svg.setAttribute("tabindex", "0");
    chart.svg.addEventListener("blur", stop);
    chart.svg.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!direction) return;
      event.preventDefault();
      current = within(current + direction * Math.max(1, (chart.last - chart.first) / 60));
      follow(current);
    });

    chart.entries.forEach((entry, place) => {
      const toggle = () => {
        const off = entry.classList.toggle("off");
        chart.drawn[place].classList.toggle("off", off);
        entry.setAttribute("aria-pressed", String(!off));
      };
      entry.setAttribute("role", "button");
      entry.setAttribute("tabindex", "0");
      entry.setAttribute("aria-pressed", "true");
      entry.title = "hide or show";
      entry.addEventListener("click", toggle);
      entry.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
      });
    });

    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "⤢";
    button.title = "enlarge or reduce";
    button.setAttribute("aria-label", "enlarge or reduce this chart");
    button.addEventListener("click", () => chart.figure.classList.toggle("wide"));
    chart.figure.append(button);
  }
})();
