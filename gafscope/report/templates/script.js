(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 7, SIDE = 100, WITH_NUMBERS = 12, LABELLED = 16;
  const colours = JSON.parse(document.getElementById("colours").textContent);

  const make = (name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Cells are the lower triangle in thousandths: k (k + 1) / 2 of them.
  const sizeOf = (cells) => Math.round((Math.sqrt(8 * cells.length + 1) - 1) / 2);
  const cellAt = (cells, i, j) => cells[(Math.max(i, j) * (Math.max(i, j) + 1)) / 2 + Math.min(i, j)];

  const drawCell = (parts, value, x, y, size, numbered) => {
    const place = value === null ? null : Math.round((value / 2000) * (colours.length - 1));
    const fill = place === null ? "#999999" : colours[place];
    // Smooth edges would let the background shine through between the cells.
    parts.push(make("rect", { x, y, width: size, height: size, fill, "shape-rendering": "crispEdges" }));
    if (!numbered) return;
    const ink = value !== null && Math.abs(value - 1000) > 600 ? "#ffffff" : "#000000";
    const text = value === null ? "–" : (value / 1000).toFixed(2);
    const middle = { x: x + size / 2, y: y + size / 2, fill: ink, "font-size": Math.min(6, 0.36 * size) };
    parts.push(make("text", { ...middle, "text-anchor": "middle", "dominant-baseline": "central" }, text));
  };

  const draw = (svg, cells) => {
    const k = sizeOf(cells), size = SIDE / k, parts = [];
    for (let i = 0; i < k; i++) {
      for (let j = 0; j < k; j++) {
        drawCell(parts, cellAt(cells, i, j), LEFT + j * size, i * size, size, k <= WITH_NUMBERS);
      }
    }
    const every = Math.ceil(k / LABELLED);
    for (let i = 0; i < k; i += every) {
      const middle = (i + 0.5) * size, look = { "font-size": 3.6, "dominant-baseline": "central" };
      parts.push(make("text", { ...look, x: LEFT - 1.5, y: middle, "text-anchor": "end" }, i));
      parts.push(make("text", { ...look, x: LEFT + middle, y: SIDE + 4, "text-anchor": "middle" }, i));
    }
    svg.replaceChildren(...parts);
  };

  for (const panel of document.querySelectorAll("[data-matrix]")) {
    const data = JSON.parse(panel.querySelector("script").textContent);
    const [slider, output, svg] = ["input", "output", "svg.cells"].map((name) => panel.querySelector(name));
    const caption = panel.querySelector(".matrix-caption");
    const show = () => {
      const place = Number(slider.value);
      draw(svg, data.cells[place]);
      output.textContent = data.steps[place].toLocaleString("en");
      slider.setAttribute("aria-valuetext", `step ${data.steps[place]}`);
      svg.setAttribute("aria-label", data.captions[place]);
      caption.textContent = data.captions[place];
    };
    panel.querySelector(".bar").style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    slider.addEventListener("input", show);
    show();
  }

  // On paper nothing can be opened.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
