// A button that puts a text into the clipboard: only a click in the page itself may do that.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea"); // a page without https, on another machine than this
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-button widget-button explorer-copy";
  const name = () => { button.textContent = model.get("description"); };
  name();
  model.on("change:description", name);
  button.addEventListener("click", async () => {
    button.textContent = (await copied(model.get("text"))) ? "copied" : "copy it from below";
    setTimeout(name, 1600);
  });
  el.append(button);
  return () => model.off("change:description", name);
}

export default { render };
