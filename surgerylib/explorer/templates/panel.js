// A picture with an overlay and boxes, whose patches can be pointed at. The kernel sends pictures as bytes and boxes as
// values; opacity and the pointed patch need no kernel to be drawn.
const SVG = "http://www.w3.org/2000/svg";
const WIDE = 760; // pixels from which the controls stand beside the panels

function element(tag, className, parent) {
  const made = document.createElement(tag);
  made.className = className;
  parent.append(made);
  return made;
}

function shape(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

function showBytes(image, bytes) {
  const before = image.src;
  if (bytes && bytes.byteLength) {
    image.src = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    image.hidden = false;
  } else {
    image.removeAttribute("src");
    image.hidden = true;
  }
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
}

function render({ model, el }) {
  el.classList.add("explorer-panel");
  const title = element("div", "explorer-title", el);
  const stage = element("div", "explorer-stage", el);
  const photo = element("img", "explorer-photo", stage);
  const overlay = element("img", "explorer-overlay", stage);
  photo.alt = overlay.alt = "";
  const svg = shape("svg", { preserveAspectRatio: "none", "aria-hidden": "true" }, stage);
  const labels = element("div", "explorer-labels", stage);
  const caption = element("div", "explorer-caption", el);
  stage.setAttribute("role", "group");
  stage.tabIndex = 0;

  const draw = () => {
    const [width, height] = model.get("size");
    const [rows, columns] = model.get("grid");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    labels.replaceChildren();
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.maxWidth = `calc(80vh * ${width / height})`; // a tall image keeps to the window
    for (const line of model.get("outline")) {
      let path = "";
      for (let i = 0; i < line.length; i += 2) path += `${i ? "L" : "M"}${line[i] * width} ${line[i + 1] * height}`;
      shape("path", { d: `${path}Z`, class: "outline" }, svg);
    }
    for (const { box, style, text, title: says } of model.get("shapes")) {
      const [x, y, right, bottom] = box;
      const drawn = shape("rect", { x, y, width: right - x, height: bottom - y, class: style }, svg);
      shape("title", {}, drawn).textContent = says;
      if (!text) continue;
      const label = element("span", style, labels);
      label.textContent = text;
      // towards the middle of the picture, whose edge would cut it
      if (x + right > 1.2 * width) label.style.right = `${100 - (100 * right) / width}%`;
      else label.style.left = `${(100 * x) / width}%`;
      label.style.top = `${(100 * y) / height}%`;
      label.classList.toggle("above", style !== "found" && y > 0.07 * height);
    }
    const pointed = model.get("pointed");
    if (pointed.length && rows && columns) {
      const [w, h] = [width / columns, height / rows];
      shape("rect", { x: pointed[1] * w, y: pointed[0] * h, width: w, height: h,
        class: model.get("pinned") ? "patch pinned" : "patch" }, svg);
    }
  };
  const write = () => {
    title.textContent = model.get("title");
    title.classList.toggle("kind", Boolean(model.get("colour"))); // a mark, as not every kind's colour is legible as text
    title.style.borderLeftColor = model.get("colour");
    caption.textContent = model.get("caption");
    stage.setAttribute("aria-label", `${model.get("title")}. ${model.get("caption")} Arrow keys move the patch, Enter pins it.`);
  };
  const fade = () => { overlay.style.opacity = model.get("opacity"); };

  const point = (row, column, pinned) => {
    const [rows, columns] = model.get("grid");
    if (!rows || !columns) return;
    const next = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
    const before = model.get("pointed");
    if (before[0] === next[0] && before[1] === next[1] && model.get("pinned") === pinned) return;
    model.set("pointed", next);
    model.set("pinned", pinned);
    model.save_changes();
  };
  const under = (event) => {
    const place = stage.getBoundingClientRect();
    const [rows, columns] = model.get("grid");
    return [Math.floor(((event.clientY - place.top) / place.height) * rows),
      Math.floor(((event.clientX - place.left) / place.width) * columns)];
  };
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && !model.get("pinned")) point(...under(event), false);
  });
  stage.addEventListener("click", (event) => {
    const [row, column] = under(event);
    const [y, x] = model.get("pointed");
    point(row, column, !(model.get("pinned") && row === y && column === x));
  });
  stage.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const [row, column] = model.get("pointed").length ? model.get("pointed") : [0, 0];
    const step = steps[event.key];
    if (step) point(row + step[0], column + step[1], model.get("pinned"));
    else if (event.key === "Enter") point(row, column, !model.get("pinned"));
    else return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would take the arrows for its own
  });

  // a container query would do, but inside the table cell of JupyterLab's outputs Chromium then forgets to grow the cell
  const fit = new ResizeObserver(() => {
    const root = el.closest(".clip-explorer");
    if (!root) return;
    root.classList.toggle("wide", root.clientWidth >= WIDE);
    for (const slider of root.querySelectorAll(".widget-slider")) { // ipywidgets gives its sliders no name to read out
      slider.querySelector("[role=slider]")?.setAttribute("aria-label", slider.querySelector("label").textContent);
    }
  });
  fit.observe(el);

  const on = { photo: () => showBytes(photo, model.get("photo")), overlay: () => showBytes(overlay, model.get("overlay")),
    size: draw, grid: draw, outline: draw, shapes: draw, pointed: draw, pinned: draw,
    title: write, caption: write, colour: write, opacity: fade };
  for (const [name, react] of Object.entries(on)) model.on(`change:${name}`, react);
  for (const react of [on.photo, on.overlay, draw, write, fade]) react();
  return () => {
    fit.disconnect();
    for (const [name, react] of Object.entries(on)) model.off(`change:${name}`, react);
    showBytes(photo, null);
    showBytes(overlay, null);
  };
}

export default { render };
