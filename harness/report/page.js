"use strict";
// Tables and pictures from the data inside the page. Texts go in as text nodes, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8b5cf6", "#7f7f7f"];
// A method has one colour in all sections.
const NAMES = [...new Set(DATA.families.flatMap((family) => family.rows.map((row) => row.name)))];
const colour = (row) => COLOURS[NAMES.indexOf(row.name) % COLOURS.length];
const TITLES = Object.fromEntries(DATA.metrics.map((metric) => [metric.name, metric.title]));
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const percent = (value, digits = 2) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits));
const signed = (value) => (value >= 0 ? "+" : "−") + Math.abs(100 * value).toFixed(2);
const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }));
// Beyond eight methods a colour comes again, dashed in pictures and round beside names.
const again = (row) => Math.floor(NAMES.indexOf(row.name) / COLOURS.length);
const dashes = (row) => ["none", "7 4", "2 3"][again(row) % 3];
const brief = (name) => (name.length > 24 ? `${name.slice(0, 16)}…${name.slice(-7)}` : name);
const chance = (p) => (p < 0.001 ? "<0.001" : p.toFixed(3));
const dot = (row) => make("span", { class: again(row) % 2 ? "swatch round" : "swatch", style: `background:${colour(row)}` });

// --- the record behind a number -------------------------------------------------------------------------------------

function showRecords(ids) {
  const place = document.getElementById("document");
  place.replaceChildren();
  for (const id of ids) {
    const record = DATA.records[id];
    if (!record) continue;
    place.append(make("h3", {}, `${record.label}, seed ${record.identity.seed}: record ${id.slice(0, 12)}`));
    const facts = [`${record.status}, ${record.finished || record.started}`, `hardware ${(record.stamp || {}).hardware || "unknown"}`];
    place.append(make("p", { class: "note" }, facts.join(" · ")));
    place.append(make("pre", {}, JSON.stringify(record, null, 1)));
  }
  document.getElementById("record").showModal();
}

// --- tables ---------------------------------------------------------------------------------------------------------

// columns: {title, left, value(row) -> what is sorted, cell(row) -> node or text}
function table(columns, rows, sorted = -1) {
  const body = make("tbody");
  const heads = columns.map((column, index) => {
    const button = make("button", { type: "button", onclick: () => sort(index) }, column.title);
    return make("th", { scope: "col", class: [column.left ? "left" : "", column.narrow ? "column" : ""].join(" ").trim() || null }, button);
  });
  let direction = -1;
  function sort(index, again = true) {
    direction = again && heads[index].getAttribute("aria-sort") === "descending" ? 1 : columns[index].left && again && !heads[index].hasAttribute("aria-sort") ? 1 : -1;
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[index].setAttribute("aria-sort", direction < 0 ? "descending" : "ascending");
    const key = columns[index].value;
    fill([...rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      return direction * (typeof x === "string" ? x.localeCompare(y) : x - y);
    }));
  }
  function fill(ordered) {
    body.replaceChildren(...ordered.map((row) => make("tr", {}, ...columns.map((column) =>
      make("td", { class: [column.left ? "left" : "", column.wrap ? "wrap" : "", column.name ? "name" : ""].join(" ").trim() || null, style: column.style ? column.style(row) : null }, column.cell(row))))));
  }
  fill(rows);
  if (sorted >= 0 && rows.length) sort(sorted, false);
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));
}

function nameCell(row) {
  const cell = make("span", {}, dot(row), row.name);
  if (row.yardstick) cell.append(" ", make("span", { class: "tag" }, "yardstick"));
  if (!row.ranked) cell.append(" ", make("span", { class: "tag" }, "not ranked"));
  for (const note of row.notes) cell.append(make("span", { class: "small" }, note));
  return cell;
}

function metricCell(row, metric, best) {
  const value = row[metric];
  const sd = row[`${metric}_sd`];
  const text = percent(value) + (sd === null || sd === undefined ? "" : ` ± ${percent(sd)}`);
  const cell = make("span", {}, make("button", {
    class: "value" + (best ? " best" : ""), type: "button", title: "Show the records", onclick: () => showRecords(row.records),
  }, text));
  if (row[`${metric}_low`] !== null && row[`${metric}_low`] !== undefined) {
    const rank = row[`${metric}_rank`];
    const few = row[`${metric}_few_images`];
    cell.append(make("span", { class: "small", title: few ? "rests on few images" : null }, `${few ? "~" : ""}${percent(row[`${metric}_low`], 1)} – ${percent(row[`${metric}_high`], 1)}${rank ? `  #${rank}` : ""}`));
  }
  return cell;
}

function leaderboard(family, rows) {
  const best = Object.fromEntries(DATA.metrics.map(({ name }) => [name, Math.max(...rows.filter((row) => row.ranked).map((row) => row[name] ?? -1))]));
  const columns = [{ title: "Method", left: true, name: true, value: (row) => row.name, cell: nameCell }];
  for (const { name, title } of DATA.metrics) {
    columns.push({ title, value: (row) => row[name], cell: (row) => metricCell(row, name, rows.length > 1 && row.ranked && row[name] === best[name]) });
  }
  return table(columns, rows, 1);
}

function costs(rows) {
  return table([
    { title: "Method", left: true, name: true, value: (row) => row.name, cell: (row) => make("span", { class: "method" }, dot(row), row.name) },
    { title: "Input", value: (row) => row.input, cell: (row) => row.input },
    { title: "Encoder", left: true, value: (row) => row.encoder, cell: (row) => row.encoder || "–" },
    { title: "Training (s)", value: (row) => row.fit_s, cell: (row) => number(row.fit_s) },
    { title: "Images / s", value: (row) => row.predict_images_per_s, cell: (row) => number(row.predict_images_per_s) },
    { title: "Memory (MB)", value: (row) => row.peak_memory_mb, cell: (row) => number(row.peak_memory_mb, 0) },
    { title: "Parameters (M)", value: (row) => row.parameters_total, cell: (row) => number(row.parameters_total === null || row.parameters_total === undefined ? null : row.parameters_total / 1e6) },
    { title: "GFLOPs / image", value: (row) => row.flops_per_image, cell: (row) => number(row.flops_per_image === null || row.flops_per_image === undefined ? null : row.flops_per_image / 1e9) },
    { title: "Hardware", left: true, value: (row) => (row.hardware || []).join(", "), cell: (row) => (row.hardware || []).join(", ") },
  ], rows);
}

function byCategory(family, rows, metric) {
  const lines = [...family.categories, null].map((category) => ({ category, values: rows.map((row) => (category === null ? row[metric] : row.categories[category][metric])) }));
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null && value !== undefined);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const columns = [{ title: "Category", left: true, value: (line) => line.category ?? "mean", cell: (line) => (line.category === null ? make("b", {}, "mean") : line.category) }];
  rows.forEach((row, place) => columns.push({
    title: row.name, narrow: true, value: (line) => line.values[place],
    cell: (line) => make("button", { class: "value" + (rows.length > 1 && line.values[place] === Math.max(...line.values.map((v) => v ?? -1)) ? " best" : ""), type: "button", onclick: () => showRecords(row.records) }, percent(line.values[place])),
    style: (line) => (line.values[place] === null || line.values[place] === undefined ? null : `background: rgb(var(--heat) / ${(0.22 * (high > low ? (high - line.values[place]) / (high - low) : 0)).toFixed(3)})`),
  }));
  return table(columns, lines);
}

const LONG = 12; // lines of pairs that stand open
function pairs(list) {
  const lines = table([
    { title: "First", left: true, name: true, value: (row) => row.first, cell: (row) => row.first },
    { title: "Second", left: true, name: true, value: (row) => row.second, cell: (row) => row.second },
    { title: "Difference", value: (row) => row.difference, cell: (row) => (row.difference === undefined ? "–" : signed(row.difference)) },
    { title: "95 % interval", value: (row) => row.low, cell: (row) => (row.low === undefined ? "–" : `${signed(row.low)} to ${signed(row.high)}`) },
    { title: "p", value: (row) => row.adjusted ?? row.p, cell: (row) => ((row.adjusted ?? row.p) === undefined ? "–" : chance(row.adjusted ?? row.p)) },
    { title: "Verdict", left: true, wrap: true, value: (row) => row.verdict, cell: (row) => row.verdict },
  ], list);
  return make("details", { open: list.length <= LONG, class: "pairs" }, make("summary", {}, `${list.length} pair${list.length === 1 ? "" : "s"}, ${list.filter((row) => row.verdict.endsWith("is better")).length} told apart`), lines);
}

function published(rows) {
  const lines = rows.flatMap((row) => DATA.metrics.filter(({ name }) => row[`${name}_published`] !== null && row[`${name}_published`] !== undefined).map(({ name, title }) => ({ row, title, measured: row[name], published: row[`${name}_published`], difference: row[`${name}_difference`], source: row[`${name}_published_source`] })));
  if (!lines.length) return null;
  return table([
    { title: "Method", left: true, value: (line) => line.row.name, cell: (line) => line.row.name },
    { title: "Metric", left: true, value: (line) => line.title, cell: (line) => line.title },
    { title: "Measured", value: (line) => line.measured, cell: (line) => percent(line.measured) },
    { title: "Published", value: (line) => line.published, cell: (line) => percent(line.published) },
    { title: "Difference", value: (line) => line.difference, cell: (line) => (line.difference === null ? "–" : signed(line.difference)) },
    { title: "Source", left: true, wrap: true, value: (line) => line.source, cell: (line) => line.source },
  ], lines);
}

// --- pictures -------------------------------------------------------------------------------------------------------

const BOX = { width: 360, height: 260, left: 54, right: 12, top: 12, bottom: 36 };

function frame(title, xLabel, yLabel) {
  const svg = shape("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": title });
  svg.append(shape("rect", { class: "axis", x: BOX.left, y: BOX.top, width: BOX.width - BOX.left - BOX.right, height: BOX.height - BOX.top - BOX.bottom }));
  svg.append(shape("text", { x: (BOX.left + BOX.width - BOX.right) / 2, y: BOX.height - 4, "text-anchor": "middle" }, xLabel));
  svg.append(shape("text", { x: 12, y: (BOX.top + BOX.height - BOX.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(BOX.top + BOX.height - BOX.bottom) / 2})` }, yLabel));
  return svg;
}
const scaleX = (unit) => BOX.left + unit * (BOX.width - BOX.left - BOX.right);
const scaleY = (unit) => BOX.height - BOX.bottom - unit * (BOX.height - BOX.top - BOX.bottom);
function ticks(svg, xs, ys) {
  for (const [unit, text] of xs) svg.append(shape("text", { x: scaleX(unit), y: BOX.height - BOX.bottom + 14, "text-anchor": unit === 1 ? "end" : "middle" }, text));
  for (const [unit, text] of ys) svg.append(shape("text", { x: BOX.left - 6, y: scaleY(unit) + 4, "text-anchor": "end" }, text));
}

const KINDS = {
  "image roc": ["ROC of images", "false positive rate", "true positive rate", 1],
  "image pr": ["Precision-recall of images", "recall", "precision", 1],
  "pixel roc": ["ROC of pixels", "false positive rate", "true positive rate", 1],
  "pixel pr": ["Precision-recall of pixels", "recall", "precision", 1],
  "pixel pro": ["Per-region overlap", "false positive rate", "mean overlap", 0.3],
};

function curves(drawn, rows) {
  return Object.entries(KINDS).map(([key, [title, xLabel, yLabel, end]]) => {
    const [part, kind] = key.split(" ");
    const lines = rows.map((row) => [row, (drawn.curves[row.index] || {})[part]?.[kind]]).filter(([, points]) => points);
    if (!lines.length) return null;
    const svg = frame(title, xLabel, yLabel);
    ticks(svg, [[0, "0"], [0.5, String(end / 2)], [1, String(end)]], [[0, "0"], [0.5, "0.5"], [1, "1"]]);
    for (const [row, points] of lines) {
      svg.append(shape("polyline", { fill: "none", stroke: colour(row), "stroke-width": 2, "stroke-dasharray": dashes(row), "stroke-linejoin": "round", points: points.map(([x, y]) => `${scaleX(x / end).toFixed(1)},${scaleY(y).toFixed(1)}`).join(" ") }));
    }
    return make("div", {}, make("h3", {}, title), svg);
  }).filter(Boolean);
}

function histograms(drawn, rows) {
  return rows.map((row) => {
    const bars = drawn.histograms[row.index];
    if (!bars) return null;
    const svg = frame(`Scores of ${row.name}`, "image score", "images");
    const most = Math.max(1, ...bars.normal, ...bars.anomalous);
    const step = 1 / bars.normal.length;
    [["normal", "var(--soft)"], ["anomalous", colour(row)]].forEach(([side, fill]) => bars[side].forEach((count, place) => {
      if (count) svg.append(shape("rect", { x: scaleX(place * step) + 1, y: scaleY(count / most), width: scaleX(step) - scaleX(0) - 1.5, height: scaleY(0) - scaleY(count / most), fill, opacity: 0.62 }));
    }));
    ticks(svg, [[0, bars.low.toPrecision(3)], [1, bars.high.toPrecision(3)]], [[0, "0"], [1, String(most)]]);
    return make("div", {}, make("h3", {}, row.name), svg);
  }).filter(Boolean);
}

// Speeds of two kinds of hardware are never in one picture: the kind that most methods ran on is shown.
function speed(rows, metric) {
  const timed = rows.filter((row) => row.predict_images_per_s > 0 && row[metric] !== null && row[metric] !== undefined && row.hardware.length === 1);
  const kinds = [...new Set(timed.map((row) => row.hardware[0]))].map((kind) => timed.filter((row) => row.hardware[0] === kind)).sort((a, b) => b.length - a.length);
  const known = kinds[0] || [];
  if (known.length < 2) return null;
  const xs = known.map((row) => Math.log10(row.predict_images_per_s));
  const ys = known.map((row) => row[metric]);
  const pad = (low, high, least) => { const edge = Math.max((high - low) * 0.15, least); return [low - edge, high + edge]; };
  const [x0, x1] = pad(Math.min(...xs), Math.max(...xs), 0.1);
  const [y0, above] = pad(Math.min(...ys), Math.max(...ys), 0.005);
  const y1 = Math.min(1, above);
  const svg = frame("Speed against accuracy", "images / s at test (logarithmic)", `${TITLES[metric]} (%)`);
  ticks(svg, [0, 0.5, 1].map((unit) => [unit, number(10 ** (x0 + unit * (x1 - x0)))]), [0, 0.5, 1].map((unit) => [unit, percent(y0 + unit * (y1 - y0), 1)]));
  const points = known.map((row, place) => ({ row, x: scaleX((xs[place] - x0) / (x1 - x0)), y: scaleY((ys[place] - y0) / (y1 - y0)) }));
  let lowest = -Infinity; // names of neighbours stand below one another
  for (const { row, x, y } of points.sort((a, b) => a.y - b.y)) {
    lowest = Math.max(y + 4, lowest + 13);
    svg.append(shape("circle", { cx: x, cy: y, r: 5, fill: colour(row) }));
    svg.append(shape("text", { x: x > BOX.width / 2 ? x - 10 : x + 10, y: lowest, "text-anchor": x > BOX.width / 2 ? "end" : "start" }, brief(row.name)));
  }
  const others = timed.filter((row) => !known.includes(row)).map((row) => row.name);
  const note = `on ${known[0].hardware[0]}` + (others.length ? `; on other hardware, not shown: ${others.join(", ")}` : "");
  return make("div", {}, make("h3", {}, `Speed against ${TITLES[metric]}`), svg, make("p", { class: "note" }, note));
}

function gallery(pictures, rows) {
  return make("div", { class: "gallery" }, ...pictures.map((picture) => make("figure", {},
    make("figcaption", {}, make("b", {}, picture.why), ` · ${picture.label} · ${picture.image}`),
    make("div", { class: "strip" },
      make("div", {}, make("img", { src: picture.input, alt: `${picture.label} input, mask outlined`, loading: "lazy" }), "input, mask outlined"),
      ...rows.filter((row) => picture.rows[row.index]).map((row) => {
        const shown = picture.rows[row.index];
        return make("div", {}, make("img", { src: shown.map, alt: `map of ${row.name}`, loading: "lazy" }), dot(row), `${row.name}: ${shown.rank} of ${picture.of}`);
      })))));
}

// --- a section ------------------------------------------------------------------------------------------------------

function select(label, options, onchange) {
  const box = make("select", { onchange: () => onchange(box.value) }, ...options.map(([value, text]) => make("option", { value }, text)));
  return make("label", {}, label, box);
}

function section(family, place) {
  const node = make("section", { id: `family-${place}` });
  const rows = family.rows.map((row, index) => ({ ...row, index }));
  let [metric, category, words] = ["i_auroc", family.categories[0], []];
  const boards = make("div");
  const details = make("div");
  const caption = make("details", { class: "caption" }, make("summary", {}, "Protocol"), ...family.caption.map((line) => make("p", {}, line)));
  const controls = make("div", { class: "controls" },
    select("Metric", DATA.metrics.map(({ name, title }) => [name, title]), (value) => { metric = value; detail(); }),
    select("Category", family.categories.map((name) => [name, name]), (value) => { category = value; detail(); }));
  function shown() {
    const all = `${family.dataset} ${family.setting}`.toLowerCase();
    return rows.filter((row) => words.every((word) => all.includes(word) || row.name.toLowerCase().includes(word)));
  }
  function board() {
    boards.replaceChildren(leaderboard(family, shown()), make("h3", {}, "Cost"), costs(shown()));
    const beside = published(shown());
    if (beside) boards.append(make("h3", {}, "Published and measured"), beside);
    for (const line of family.missing) boards.append(make("p", { class: "note" }, line));
  }
  function detail() {
    const now = shown();
    details.replaceChildren(make("h3", {}, `${TITLES[metric]} by category`), byCategory(family, now, metric));
    const scatter = speed(now, metric);
    const names = new Set(now.map((row) => row.name));
    const compared = (family.pairs[metric] || []).filter((pair) => names.has(pair.first) && names.has(pair.second));
    if (compared.length) details.append(make("h3", {}, `${TITLES[metric]} in pairs, on the same test images`), pairs(compared));
    const drawn = family.drawn[category];
    const lines = curves(drawn, now);
    if (lines.length || scatter) {
      details.append(make("div", { class: "panels" }, ...(scatter ? [scatter] : []), ...lines));
      details.append(make("p", { class: "legend" }, ...now.map((row) => make("span", {}, dot(row), row.name))));
    }
    const bars = histograms(drawn, now);
    if (bars.length) details.append(make("h3", {}, `Image scores of ${category}: normal grey, anomalous in colour`), make("div", { class: "panels" }, ...bars));
    if (drawn.pictures.length) {
      details.append(make("h3", {}, `Pictures of ${category}`), make("p", { class: "note" }, "Below each map: the rank of the image's score among the test images of the category, 1 the most anomalous. One colour scale a method."), gallery(drawn.pictures, now));
    }
    for (const reason of family.reasons) details.append(make("p", { class: "note" }, reason));
  }
  node.append(make("h2", {}, family.title), caption, boards, controls, details);
  node.update = (wanted) => { words = wanted; node.hidden = !shown().length; if (!node.hidden) { board(); detail(); } };
  return node;
}

function overallSection(group) {
  const node = make("section", {}, make("h2", {}, group.title), make("p", { class: "caption" }, `Data sets: ${group.datasets.join(", ")}`));
  const picture = new DOMParser().parseFromString(group.picture, "image/svg+xml").documentElement;
  node.append(make("div", { class: "scroll ranks" }, document.importNode(picture, true)));
  if (group.note) node.append(make("p", { class: "note" }, group.note));
  if (group.pairs.length) node.append(pairs(group.pairs));
  return node;
}

// --- the page -------------------------------------------------------------------------------------------------------

const main = document.getElementById("main");
const sections = DATA.families.map(section);
main.replaceChildren(...DATA.overall.map(overallSection), ...sections);
document.getElementById("about").textContent = `${Object.keys(DATA.records).length} records in ${sections.length} table${sections.length === 1 ? "" : "s"} of comparable numbers · made ${DATA.made.slice(0, 16).replace("T", " ")} UTC by inpbench ${DATA.version}`;
const links = DATA.families.map((family, place) => make("a", { href: `#family-${place}` }, family.title));
document.getElementById("contents").append(...links);
const filter = document.getElementById("filter");
const update = () => { const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean); sections.forEach((node, place) => { node.update(words); links[place].hidden = node.hidden; }); };
filter.addEventListener("input", update);
update();
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
