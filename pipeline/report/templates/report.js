for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const number = Number(x) - Number(y);
        return (Number.isNaN(number) ? x.localeCompare(y) : number) * (down ? -1 : 1);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}

const tools = document.querySelector("[data-filter]");
if (tools) {
  tools.hidden = false;
  const [search, told] = [tools.querySelector("input[type=search]"), tools.querySelector("output")];
  const boxes = [...tools.querySelectorAll("input[type=checkbox]")];
  const parts = [...document.querySelectorAll("[data-words]")];
  const rows = parts.filter((part) => part.tagName === "TR");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const states = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    for (const part of parts) {
      const found = words.every((word) => part.dataset.words.includes(word));
      part.hidden = !(found && (!boxes.length || states.has(part.dataset.state)));
    }
    const asked = words.length > 0 || boxes.some((box) => !box.checked);
    if (asked) document.querySelectorAll("[data-more]").forEach((more) => (more.open = true));
    const shown = rows.filter((row) => !row.hidden).length;
    told.textContent = shown < rows.length ? `${shown} of ${rows.length} images` : "";
  };
  tools.addEventListener("input", filter);
  filter();
}

for (const trend of document.querySelectorAll(".figure.long")) trend.parentElement.scrollLeft = trend.scrollWidth;

const opacity = document.querySelector("[data-opacity]");
const layers = [...document.querySelectorAll(".shots img:not([data-kind=image])")];
if (opacity && layers.length) {
  opacity.hidden = false;
  const [slider, told] = [opacity.querySelector("input"), opacity.querySelector("output")];
  slider.addEventListener("input", () => {
    told.textContent = `${slider.value} %`;
    for (const layer of layers) {
      const image = layer.closest(".row").querySelector("img[data-kind=image]");
      if (image && !layer.parentElement.querySelector(".under")) {
        const under = image.cloneNode();
        under.className = "under";
        under.alt = "";
        delete under.dataset.kind;
        layer.before(under);
      }
      layer.style.opacity = slider.value / 100;
    }
  });
}
for (const ground of document.querySelectorAll(".ground")) {
  const shot = [...document.querySelectorAll(".shots")].find((figure) => figure.dataset.id === ground.dataset.of);
  const image = shot?.querySelector("img[data-kind=image]");
  if (image) {
    const under = image.cloneNode();
    under.className = "under";
    under.alt = "";
    delete under.dataset.kind;
    ground.prepend(under);
  }
}
for (const frame of document.querySelectorAll(".frame")) {
  frame.addEventListener("click", () => frame.closest(".shots").classList.toggle("large"));
}
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.again, [data-more])").forEach((part) => (part.open = true)));
