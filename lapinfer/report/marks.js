function marks() {  // What charts, bars and maps say of each value: when it is pointed at, and when it is reached by keys.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("aria-hidden", "true");  // what has the focus is read anyway
  document.body.append(tip);
  const near = 24;  // pixels from a mark to where it is pointed at
  const number = n => n.toLocaleString("en");
  function ofCell(cell) {
    const row = cell.parentNode, head = cell.closest("table").tHead.rows[0].cells, mean = +row.dataset.mean;
    const noun = cell.closest("table").dataset.noun, count = +cell.textContent;
    return `layer ${row.cells[0].textContent}, ${noun} ${head[cell.cellIndex].textContent}: ${number(count)} tokens` +
      (mean ? `, ${(count / mean).toFixed(2)} × the mean` : "");
  }
  const told = mark => mark.localName === "td" ? ofCell(mark) : mark.getAttribute("aria-label");
  const centre = box => [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
  let shown = null, focused = null;
  function show(mark) {
    if (shown) shown.classList.remove("shown");
    shown = mark;
    tip.classList.toggle("there", !!mark);
    if (!mark) return;
    mark.classList.add("shown");
    tip.textContent = told(mark);
    const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect(), room = document.documentElement.clientWidth;
    const above = box.top - own.height - 8;
    tip.style.left = Math.max(4, Math.min(centre(box)[0] - own.width / 2, room - own.width - 4)) + "px";
    tip.style.top = (above > 4 ? above : box.bottom + 8) + "px";
  }
  function nearest(all, x, y) {
    let best = null, least = near;
    for (const mark of all) {
      const box = mark.getBoundingClientRect();
      if (!box.width && !box.height) continue;
      const inside = Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
      const away = inside + Math.hypot(centre(box)[0] - x, centre(box)[1] - y) / 100;
      if (away < least) [best, least] = [mark, away];
    }
    return best;
  }
  function next(all, from, key, map) {
    const up = key === "ArrowUp", down = key === "ArrowDown";
    if (map && (up || down)) {
      const row = from.parentNode, cells = (up ? row.previousElementSibling : row.nextElementSibling)?.cells;
      return cells && cells[Math.min(from.cellIndex, cells.length - 1)];
    }
    if (key === "Home" || key === "End") return all.at(key === "Home" ? 0 : -1);
    return all[all.indexOf(from) + (up || key === "ArrowLeft" ? -1 : 1)];
  }
  for (const chart of document.querySelectorAll(".chart, .bars, .map")) {
    const map = chart.localName === "table";
    for (const title of chart.querySelectorAll("title")) {
      title.parentNode.setAttribute("aria-label", title.textContent);
      title.remove();  // else it appears beside ours
    }
    for (const part of chart.querySelectorAll("[title]")) {
      part.setAttribute("aria-label", part.title);
      part.removeAttribute("title");
    }
    const listed = () => [...chart.querySelectorAll(map ? "td" : "[aria-label]")].filter(mark => !mark.hidden);
    const all = listed();
    if (!all.length) continue;
    if (map) chart.setAttribute("role", "grid");
    else for (const mark of all) mark.setAttribute("role", "img");
    for (const mark of all) mark.setAttribute("tabindex", -1);
    all[0].setAttribute("tabindex", 0);  // one stop for the whole chart; arrows go on
    chart.addEventListener("keydown", event => {
      const to = /^(Arrow|Home|End)/.test(event.key) && next(listed(), event.target, event.key, map);
      if (!to) return;
      event.preventDefault();
      event.target.setAttribute("tabindex", -1);
      to.setAttribute("tabindex", 0);
      to.focus();
    });
    chart.addEventListener("focusin", event => show(focused = event.target));
    chart.addEventListener("focusout", () => show(focused = null));
    chart.addEventListener("pointermove", event => {
      const hit = event.target.closest("[tabindex]");
      const found = hit && chart.contains(hit) ? hit : map ? null : nearest(listed(), event.clientX, event.clientY);
      show(found || focused);
    });
    chart.addEventListener("pointerleave", () => show(focused));
  }
  for (const wide of document.querySelectorAll(".wide"))  // a stop only where there is something to scroll
    new ResizeObserver(() => {
      if (wide.scrollWidth > wide.clientWidth && !wide.querySelector(".map")) wide.setAttribute("tabindex", 0);
      else wide.removeAttribute("tabindex");
    }).observe(wide);
  document.addEventListener("keydown", event => { if (event.key === "Escape") show(null); });
  addEventListener("scroll", () => { if (shown) show(shown === focused ? shown : null); }, true);
}
