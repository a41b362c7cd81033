function formula() {  // whatif.py, line by line
  const depth = (t, s) => Math.max(t.depth + s.doublings, 0);
  function experts(t, s) {
    if (t.trees) return t.trees * (t.neurons ? 2 ** (depth(t, s) + 1) - 1 : 2 ** depth(t, s));
    return Math.max(Math.floor(t.experts * 2 ** s.doublings + 0.5), 1);
  }
  function chosen(t, s) {
    if (t.trees) return t.trees * (t.neurons ? depth(t, s) + 1 : 1);
    return Math.min(s.top_k === null ? t.top_k : s.top_k, experts(t, s));
  }
  function timesTouched(t, s) {
    switch (t.by) {
      case "position": return t.window === null ? s.context : Math.min(s.context, t.window);
      case "expert": return chosen(t, s);
      case "block": return Math.ceil((experts(t, s) + t.extra) / 16);
      case "each": return experts(t, s);
      case "node": return t.trees * depth(t, s);
      case "kept": case "best": return 0;
      default: return 1;
    }
  }
  function timesStored(t, s) {
    switch (t.by) {
      case "expert": return experts(t, s);
      case "node": return t.trees * (2 ** depth(t, s) - 1);
      case "kept": case "best": return 1;
      case "token": case "masked": return 0;
      default: return timesTouched(t, s);
    }
  }
  const size = (t, times, s) => Math.floor(times * t.bytes * (t.packed ? s.scale : 1) + 0.5);
  const sum = (terms, s, times) => terms.reduce((all, t) => all + size(t, times(t, s), s), 0);
  const part = (terms, name, s) => sum(terms.filter(t => t.part === name), s, timesTouched);
  return { experts, chosen, part, touched: (terms, s) => sum(terms, s, timesTouched),
           stored: (terms, s) => sum(terms, s, timesStored) };
}
function sliders(models, f) {
  const get = id => document.getElementById(id), names = ["k", "e", "bits", "context", "bandwidth"];
  const digits = n => ({ [n < 1e4 ? "maximumSignificantDigits" : "maximumFractionDigits"]: n < 1e4 ? 4 : 0 });
  const mb = n => (n / 1e6).toLocaleString("en", digits(n / 1e6)) + " MB";
  const times = (now, own) => now === own ? "as it is" : (now / own).toFixed(2) + " × as it is";
  const parts = JSON.parse(get("whatif").dataset.parts);
  let m, stops, own;
  function pick() {
    m = models[get("model").value];
    const t = m.terms.find(t => t.by === "expert"), sorted = list => [...new Set(list)].sort((a, b) => a - b);
    const free = t && !t.trees, most = free ? t.experts : 1;
    stops = { k: free ? Array.from({ length: most }, (_, i) => i + 1) : [t ? f.chosen(t, m.own) : 1],
      e: t ? [-2, -1, 0, 1, 2, 3, 4] : [0],
      bits: sorted([2, 3, 4, 4.5, 5, 6.25, 8.5, 16, 32, m.bits]),
      context: sorted([128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, m.own.context]),
      bandwidth: sorted([5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 800, m.bandwidth]) };
    own = { k: free ? t.top_k : stops.k[0], e: 0, bits: m.bits, context: m.own.context, bandwidth: m.bandwidth };
    for (const name of names) {
      get(name).max = Math.max(stops[name].length - 1, 1);
      get(name).value = stops[name].indexOf(own[name]);
      get(name).disabled = stops[name].length < 2;
    }
    show();
  }
  function bar(id, s, longest) {
    get(id + "-total").textContent = mb(f.touched(m.terms, s));
    for (const piece of get(id).children) {
      const name = piece.classList[1], bytes = f.part(m.terms, name, s);
      piece.hidden = !bytes;
      piece.style.width = 100 * bytes / longest + "%";
      piece.setAttribute("aria-label", parts[name] + ": " + mb(bytes));
    }
  }
  function show() {
    const v = Object.fromEntries(names.map(name => [name, stops[name][get(name).value]]));
    const t = m.terms.find(t => t.by === "expert"), free = t && !t.trees;
    const s = { context: v.context, top_k: free && v.k !== t.top_k ? v.k : null, doublings: v.e,
                scale: v.bits === m.bits ? 1 : v.bits / m.bits };
    const told = { k: t ? f.chosen(t, s) + (t.trees ? " (a tree gives one leaf)" : "") : "none: dense",
      e: t ? f.experts(t, s).toLocaleString("en") + " per layer" : "none: dense",
      bits: v.bits.toFixed(2) + (v.bits === m.bits ? " (its own)" : ""), context: v.context.toLocaleString("en"),
      bandwidth: v.bandwidth.toFixed(1) + " GB/s" + (v.bandwidth === m.bandwidth ? " (this machine)" : "") };
    for (const name of names) {
      get(name + "-now").textContent = told[name];
      get(name).setAttribute("aria-valuetext", told[name]);
    }
    const touched = f.touched(m.terms, s), before = f.touched(m.terms, m.own), stored = f.stored(m.terms, s);
    get("touched").textContent = mb(touched);
    get("ratio").textContent = times(touched, before);
    get("stored").textContent = mb(stored);
    get("stored-ratio").textContent = times(stored, f.stored(m.terms, m.own));
    const speed = n => n.toLocaleString("en", { maximumSignificantDigits: 3 }) + " tok/s";
    get("speed").textContent = stored > m.cache ? "≤ " + speed(v.bandwidth * 1e9 / touched) : "no bound";
    get("measured").textContent = (stored > m.cache ? "" : "it fits the caches; ") + "measured as it is: " + speed(m.speed);
    bar("bar-own", m.own, Math.max(before, touched));
    bar("bar-set", s, Math.max(before, touched));
    get("whatif").dataset.bytes = touched;
    get("whatif").dataset.stored = stored;
  }
  get("model").addEventListener("change", pick);
  get("reset").addEventListener("click", pick);
  for (const name of names) get(name).addEventListener("input", show);
  get("whatif").hidden = false;
  pick();
}
