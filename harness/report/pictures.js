// Pictures as SVG: curves, histograms, speed against accuracy, and the images that methods saw.

// An empty picture: axes of units from 0 to 1, each end and tick with its text. ticks: [unit, text].
function frame(spoken, xLabel, yLabel, { width = 360, height = 260, xTicks = [], yTicks = [], lines = false } = {}) {
  const [left, right, top, bottom] = [54, width - 12, 12, height - 36];
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken });
  const x = (unit) => left + unit * (right - left);
  const y = (unit) => bottom - unit * (bottom - top);
  for (const [unit, text] of xTicks) {
    if (lines) svg.append(shape("line", { class: "axis", x1: x(unit), x2: x(unit), y1: top, y2: bottom }));
    svg.append(shape("text", { x: x(unit), y: bottom + 14, "text-anchor": unit > 0.98 ? "end" : "middle" }, text));
  }
  for (const [unit, text] of yTicks) {
    if (lines) svg.append(shape("line", { class: "axis", x1: left, x2: right, y1: y(unit), y2: y(unit) }));
    svg.append(shape("text", { x: left - 6, y: y(unit) + 4, "text-anchor": "end" }, text));
  }
  svg.append(shape("rect", { class: "axis", x: left, y: top, width: right - left, height: bottom - top }));
  svg.append(shape("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
  svg.append(shape("text", { x: 12, y: (top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(top + bottom) / 2})` }, yLabel));
  return { svg, x, y, left, right, top, bottom };
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
    const { svg, x: scaleX, y: scaleY } = frame(`${title}: ${lines.map(([row]) => row.name).join(", ")}`, xLabel, yLabel, {
      xTicks: [[0, "0"], [0.5, String(end / 2)], [1, String(end)]], yTicks: [[0, "0"], [0.5, "0.5"], [1, "1"]],
    });
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
    const most = Math.max(1, ...bars.normal, ...bars.anomalous);
    const { svg, x: scaleX, y: scaleY } = frame(`Scores of ${row.name}`, "image score", "images", {
      xTicks: [[0, bars.low.toPrecision(3)], [1, bars.high.toPrecision(3)]], yTicks: [[0, "0"], [1, String(most)]],
    });
    const step = 1 / bars.normal.length;
    [["normal", "var(--soft)"], ["anomalous", colour(row)]].forEach(([side, fill]) => bars[side].forEach((count, place) => {
      if (count) svg.append(shape("rect", { x: scaleX(place * step) + 1, y: scaleY(count / most), width: scaleX(step) - scaleX(0) - 1.5, height: scaleY(0) - scaleY(count / most), fill, opacity: 0.62 }));
    }));
    return make("div", {}, make("h3", {}, row.name), svg);
  }).filter(Boolean);
}

// Round values within a range, about `wanted` of them.
function round(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const values = [];
  for (let count = Math.ceil(low / step - 1e-9); count * step <= high + step * 1e-9; count += 1) values.push(count * step);
  return { values, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

// 1, 2, 5, 10, ... within a range of logarithms.
function decades(low, high) {
  const values = [];
  for (let power = Math.floor(low); power <= high; power += 1) values.push(...[1, 2, 5].map((factor) => Math.log10(factor) + power));
  return values.filter((value) => value >= low && value <= high);
}

const LETTER = 6.2; // width of a letter of a label, roughly
// Where each label stands: the nearest place beside its point that no point and no other label has. points: {x, y, text}.
function labelled(points, { left, right, top, bottom }) {
  const taken = points.map(({ x, y }) => [x - 7, y - 7, x + 7, y + 7]);
  const free = (box) => box[0] >= left + 2 && box[2] <= right - 2 && box[1] >= top + 1 && box[3] <= bottom - 1 && taken.every((other) => box[2] <= other[0] || box[0] >= other[2] || box[3] <= other[1] || box[1] >= other[3]);
  const around = [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [1, 1], [-1, -1], [-1, 1]];
  return [...points].sort((a, b) => a.y - b.y).map((point) => {
    const wide = point.text.length * LETTER;
    const places = [9, 18, 30, 44, 60, 80].flatMap((far) => around.map(([right, down]) => {
      const x = point.x + right * far;
      const y = point.y + down * Math.max(far, 13);
      const start = right > 0 ? x : right < 0 ? x - wide : x - wide / 2;
      return { far, x, y, anchor: ["end", "middle", "start"][right + 1], box: [start, y - 7, start + wide, y + 6] };
    }));
    const place = places.find(({ box }) => free(box)) || places[0];
    taken.push(place.box);
    return { ...point, place };
  });
}

// Speeds of two kinds of hardware are never in one picture: the kind that most methods ran on is shown. The contenders make the
// scale; a yardstick beyond it stands at the edge, hollow, with an arrow.
function speed(rows, metric) {
  const timed = rows.filter((row) => row.predict_images_per_s > 0 && known(row[metric]) && row.hardware.length === 1);
  const kinds = [...new Set(timed.map((row) => row.hardware[0]))].map((kind) => timed.filter((row) => row.hardware[0] === kind)).sort((a, b) => b.length - a.length);
  const drawn = kinds[0] || [];
  if (drawn.length < 2) return null;
  const contenders = drawn.filter((row) => !row.yardstick);
  const scaled = contenders.length > 1 ? contenders : drawn;
  const range = (values, least, most) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const edge = Math.max((high - low) * 0.18, least);
    return [low - edge, Math.min(most, high + edge)];
  };
  const [x0, x1] = range(scaled.map((row) => Math.log10(row.predict_images_per_s)), 0.15, Infinity);
  const [y0, y1] = range(scaled.map((row) => 100 * row[metric]), 0.3, 100.4);
  const unit = (value, low, high) => (value - low) / (high - low);
  const { values, digits } = round(y0, Math.min(y1, 100), 5);
  const name = `Speed against ${TITLES[metric]}`;
  const spoken = drawn.map((row) => `${row.name} ${number(row.predict_images_per_s)} images per second, ${percent(row[metric])}`);
  const box = frame(`${name}: ${spoken.join("; ")}`, "images / s at test (logarithmic)", `${TITLES[metric]} (%)`, {
    width: 720, height: 320, lines: true,
    xTicks: decades(x0, x1).map((value) => [unit(value, x0, x1), number(Math.round(10 ** (value + 3)) / 1000).replace(/\.0+$/, "")]),
    yTicks: values.map((value) => [unit(value, y0, y1), value.toFixed(digits)]),
  });
  const points = drawn.map((row) => {
    const [right, up] = [unit(Math.log10(row.predict_images_per_s), x0, x1), unit(100 * row[metric], y0, y1)];
    const beyond = (right < 0 ? "←" : right > 1 ? "→" : "") + (up < 0 ? "↓" : up > 1 ? "↑" : "");
    const inside = (value) => Math.min(1, Math.max(0, value));
    const far = beyond ? ` ${beyond} ${percent(row[metric], 1)} %, ${number(row.predict_images_per_s)} / s` : "";
    return { row, beyond, x: box.x(inside(right)), y: box.y(inside(up)), text: row.name + far };
  });
  for (const { row, beyond, x, y, text, place } of labelled(points, box)) {
    if (place.far > 18) box.svg.append(shape("line", { class: "leader", x1: x, y1: y, x2: place.x, y2: place.y }));
    box.svg.append(shape("circle", { cx: x, cy: y, r: 5, fill: beyond ? "var(--card)" : colour(row), stroke: colour(row), "stroke-width": 2 }));
    box.svg.append(shape("text", { class: "label", x: place.x, y: place.y + 4, "text-anchor": place.anchor }, text));
  }
  const others = timed.filter((row) => !drawn.includes(row)).map((row) => row.name);
  const note = `on ${drawn[0].hardware[0]}` + (others.length ? `; on other hardware, not shown: ${others.join(", ")}` : "");
  return make("div", { class: "speed" }, make("h3", {}, name), make("div", { class: "scroll" }, box.svg), make("p", { class: "note" }, note));
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
