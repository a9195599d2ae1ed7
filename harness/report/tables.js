"use strict";
// Tables from the data inside the page. Texts go in as text nodes, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
// Told apart by colour-blind eyes, and at least 3:1 against both papers (tests/test_report.py); grey is for normal images.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc6ba0", "#a67c00", "#3a92d4", "#8b5cf6", "#6f8a1f"];
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
// Three digits or more, as many behind the point as that takes: 0.02, 4.21, 38.1, 1,402.
function number(value) {
  if (value === null || value === undefined) return "–";
  const digits = value === 0 || value >= 100 ? 0 : value >= 10 ? 1 : value >= 0.095 ? 2 : 3;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
const known = (value) => value !== null && value !== undefined;
// Beyond eight methods a colour comes again, dashed in pictures and round beside names.
const again = (row) => Math.floor(NAMES.indexOf(row.name) / COLOURS.length);
const dashes = (row) => ["none", "7 4", "2 3"][again(row) % 3];
// A name may be broken after its points and the like and before a bracket, a long one after underlines, too.
function breakable(name) {
  const parts = name.match(name.length > 16 ? /\(?[^._:(,=\s]*[._:,=\s]*/g : /\(?[^.:(,=\s]*[.:,=\s]*/g);
  return parts.flatMap((part, place) => (place ? [make("wbr"), part] : [part]));
}
const chance = (p) => (p < 0.001 ? "<0.001" : p.toFixed(3));
// A method's mark and its name; the mark never stands alone at the end of a line.
function called(row) {
  const [first, ...rest] = breakable(row.name);
  return make("span", {}, make("span", { class: "whole" }, dot(row), first), ...rest);
}
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

// columns: {title, left, value(row) -> what is sorted, cell(row) -> node, nodes or text}; label: what a screen reader says of it
function table(label, columns, rows, sorted = -1) {
  const body = make("tbody");
  const heads = columns.map((column, index) => {
    const button = make("button", { type: "button", onclick: () => sort(index), title: `Sort by ${column.title}` }, ...breakable(column.title));
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
    body.replaceChildren(...ordered.map((row) => make("tr", {}, ...columns.map((column, index) => make(index ? "td" : "th", {
      scope: index ? null : "row",
      class: [column.left ? "left" : "", column.wrap ? "wrap" : "", column.name ? "name" : ""].join(" ").trim() || null,
      style: column.style ? column.style(row) : null,
    }, ...[column.cell(row)].flat())))));
  }
  fill(rows);
  if (sorted >= 0 && rows.length) sort(sorted, false);
  return make("div", { class: "scroll" }, make("table", { "aria-label": label }, make("thead", {}, make("tr", {}, ...heads)), body));
}

// The notes of all rows, each once: what stands below the table, by the number beside a name.
function notesOf(rows) {
  return [...new Set(rows.flatMap((row) => row.notes))];
}

function nameCell(row, notes) {
  const cell = called(row);
  const marks = row.notes.map((note) => notes.indexOf(note) + 1);
  if (marks.length) cell.append(make("sup", { title: row.notes.join("\n") }, marks.join(",")));
  if (row.yardstick) cell.append(" ", make("span", { class: "tag", title: "not a contender" }, "yardstick"));
  if (!row.ranked) cell.append(" ", make("span", { class: "tag" }, "not ranked"));
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
    cell.append(make("span", { class: "small", title: `95 % interval${few ? ", rests on few images" : ""}` }, `${few ? "~" : ""}${percent(row[`${metric}_low`], 1)} – ${percent(row[`${metric}_high`], 1)}${rank ? `  #${rank}` : ""}`));
  }
  return cell;
}

function leaderboard(family, rows) {
  const best = Object.fromEntries(DATA.metrics.map(({ name }) => [name, Math.max(...rows.filter((row) => row.ranked).map((row) => row[name] ?? -1))]));
  const notes = notesOf(rows);
  const columns = [{ title: "Method", left: true, name: true, value: (row) => row.name, cell: (row) => nameCell(row, notes) }];
  for (const { name, title } of DATA.metrics) {
    columns.push({ title, value: (row) => row[name], cell: (row) => metricCell(row, name, rows.length > 1 && row.ranked && row[name] === best[name]) });
  }
  const below = make("div", { class: "notes" }, ...notes.map((note, place) => make("p", {}, make("sup", {}, String(place + 1)), note)));
  if (rows.some((row) => DATA.metrics.some(({ name }) => known(row[`${name}_low`])))) {
    below.append(make("p", {}, "Small below a number: its 95 % interval for other test images of the same kind, and the rank #, shared where the same images cannot tell methods apart; ~ rests on few images."));
  }
  return make("div", {}, table(family.title, columns, rows, 1), below);
}

function costs(family, rows) {
  const scaled = (value, unit) => number(known(value) ? value / unit : null);
  return table(`Cost: ${family.title}`, [
    { title: "Method", left: true, name: true, value: (row) => row.name, cell: (row) => called(row) },
    { title: "Input", value: (row) => row.input, cell: (row) => row.input },
    { title: "Encoder", left: true, value: (row) => row.encoder, cell: (row) => row.encoder || "–" },
    { title: "Training (s)", value: (row) => row.fit_s, cell: (row) => number(row.fit_s) },
    { title: "Images / s", value: (row) => row.predict_images_per_s, cell: (row) => number(row.predict_images_per_s) },
    { title: "Memory (GB)", value: (row) => row.peak_memory_mb, cell: (row) => scaled(row.peak_memory_mb, 1e3) },
    { title: "Parameters (M)", value: (row) => row.parameters_total, cell: (row) => scaled(row.parameters_total, 1e6) },
    { title: "GFLOPs / image", value: (row) => row.flops_per_image, cell: (row) => scaled(row.flops_per_image, 1e9) },
    { title: "Hardware", left: true, value: (row) => (row.hardware || []).join(", "), cell: (row) => (row.hardware || []).join(", ") },
  ], rows);
}

const YARDSTICKS = new Set(DATA.families.flatMap((family) => family.rows.filter((row) => row.yardstick).map((row) => row.name)));
// The background of a number: darker is further from the best of all. The contenders make the scale; lines: {name, values}.
function heat(lines) {
  const contenders = lines.filter((line) => !YARDSTICKS.has(line.name));
  const all = (contenders.length > 1 ? contenders : lines).flatMap((line) => line.values).filter(known);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const share = (value) => (high > low ? Math.min(1, (high - value) / (high - low)) : 0);
  return (value) => (known(value) ? `background: rgb(var(--heat) / ${(0.22 * share(value)).toFixed(3)})` : null);
}

function byCategory(family, rows, metric) {
  const lines = [...family.categories, null].map((category) => ({ category, values: rows.map((row) => (category === null ? row[metric] : row.categories[category][metric])) }));
  const shade = heat(rows.map((row, place) => ({ name: row.name, values: lines.map((line) => line.values[place]) })));
  const best = new Map(lines.map((line) => [line, Math.max(...line.values.filter((value, place) => known(value) && rows[place].ranked))]));
  const columns = [{ title: "Category", left: true, value: (line) => line.category ?? "mean", cell: (line) => (line.category === null ? make("b", {}, "mean") : line.category) }];
  rows.forEach((row, place) => columns.push({
    title: row.name, narrow: true, value: (line) => line.values[place],
    cell: (line) => make("button", { class: "value" + (rows.length > 1 && row.ranked && line.values[place] === best.get(line) ? " best" : ""), type: "button", title: "Show the records", onclick: () => showRecords(row.records) }, percent(line.values[place])),
    style: (line) => shade(line.values[place]),
  }));
  return table(`${TITLES[metric]} by category: ${family.title}`, columns, lines);
}

// A method a line, a data set a column; the mean rank decides the order. rows, places: the methods and data sets that are shown;
// mean and mean rank are always of all data sets.
function overDatasets(title, found, rows, places) {
  const best = found.datasets.map((_, place) => Math.max(...rows.map((row) => row.scores[place])));
  const shade = heat(rows.map((row) => ({ name: row.name, values: places.map((place) => row.scores[place]) })));
  const mean = (row) => row.scores.reduce((sum, score) => sum + score, 0) / row.scores.length;
  return table(title, [
    { title: "Method", left: true, name: true, value: (row) => row.name, cell: (row) => called(row) },
    { title: "Mean rank", value: (row) => -row.rank, cell: (row) => row.rank.toFixed(2) },
    { title: "Mean", value: mean, cell: (row) => percent(mean(row)) },
    ...places.map((place) => ({
      title: found.datasets[place], narrow: true, value: (row) => row.scores[place],
      cell: (row) => make("button", { class: "value" + (row.scores[place] === best[place] ? " best" : ""), type: "button", title: "Show the records", onclick: () => showRecords(row.records[place]) }, percent(row.scores[place])),
      style: (row) => shade(row.scores[place]),
    })),
  ], rows, 1);
}

const LONG = 12; // lines of pairs that stand open
function pairs(label, list) {
  const lines = table(label, [
    { title: "First", left: true, name: true, value: (row) => row.first, cell: (row) => breakable(row.first) },
    { title: "Second", left: true, name: true, value: (row) => row.second, cell: (row) => breakable(row.second) },
    { title: "Difference", value: (row) => row.difference, cell: (row) => (row.difference === undefined ? "–" : signed(row.difference)) },
    { title: "95 % interval", value: (row) => row.low, cell: (row) => (row.low === undefined ? "–" : `${signed(row.low)} to ${signed(row.high)}`) },
    { title: "p", value: (row) => row.adjusted ?? row.p, cell: (row) => ((row.adjusted ?? row.p) === undefined ? "–" : chance(row.adjusted ?? row.p)) },
    { title: "Verdict", left: true, wrap: true, value: (row) => row.verdict, cell: (row) => breakable(row.verdict) },
  ], list);
  const [apart, without] = [list.filter((row) => row.verdict.endsWith("is better")).length, list.filter((row) => row.verdict.startsWith("not compared")).length];
  const words = `${list.length} pair${list.length === 1 ? "" : "s"}, ${apart} told apart${without ? `, ${without} not compared` : ""}`;
  return make("details", { open: list.length <= LONG, class: "pairs" }, make("summary", {}, words), lines);
}

function published(rows) {
  const lines = rows.flatMap((row) => DATA.metrics.filter(({ name }) => row[`${name}_published`] !== null && row[`${name}_published`] !== undefined).map(({ name, title }) => ({ row, title, measured: row[name], published: row[`${name}_published`], difference: row[`${name}_difference`], source: row[`${name}_published_source`] })));
  if (!lines.length) return null;
  return table("Published and measured", [
    { title: "Method", left: true, name: true, value: (line) => line.row.name, cell: (line) => breakable(line.row.name) },
    { title: "Metric", left: true, value: (line) => line.title, cell: (line) => line.title },
    { title: "Measured", value: (line) => line.measured, cell: (line) => percent(line.measured) },
    { title: "Published", value: (line) => line.published, cell: (line) => percent(line.published) },
    { title: "Difference", value: (line) => line.difference, cell: (line) => (line.difference === null ? "–" : signed(line.difference)) },
    { title: "Source", left: true, wrap: true, value: (line) => line.source, cell: (line) => line.source },
  ], lines);
}
