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
    boards.replaceChildren(leaderboard(family, shown()), make("h3", {}, "Cost"), costs(family, shown()));
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
    if (compared.length) details.append(make("h3", {}, `${TITLES[metric]} in pairs, on the same test images`), pairs(`${TITLES[metric]} in pairs: ${family.title}`, compared));
    const drawn = family.drawn[category];
    const lines = curves(drawn, now);
    if (scatter) details.append(scatter);
    if (lines.length) {
      details.append(make("h3", {}, `Curves of ${category}`), make("div", { class: "panels" }, ...lines));
      details.append(make("p", { class: "legend" }, ...now.map((row) => make("span", {}, dot(row), row.name))));
    }
    const bars = histograms(drawn, now);
    if (bars.length) details.append(make("h3", {}, `Image scores of ${category}: normal grey, anomalous in colour`), make("div", { class: "panels" }, ...bars));
    if (drawn.pictures.length) {
      details.append(make("h3", {}, `Pictures of ${category}`), make("p", { class: "note" }, "Below each map: the rank of the image's score among the test images of the category, 1 the most anomalous. One colour scale a method."), gallery(drawn.pictures, now));
    }
    if (family.reasons.length) {
      details.append(make("details", { class: "note" }, make("summary", {}, "What is not drawn, and why"), ...family.reasons.map((reason) => make("p", {}, reason))));
    }
  }
  node.append(make("h2", {}, family.title), caption, boards, controls, details);
  node.update = (wanted) => { words = wanted; node.hidden = !shown().length; if (!node.hidden) { board(); detail(); } };
  return node;
}

// group.metrics: for each metric that two data sets have, what was found with it.
function overallSection(group, place) {
  const names = Object.keys(group.metrics);
  let [metric, words] = [names[0], []];
  const node = make("section", { id: `overall-${place}` }, make("h2", {}, group.title));
  const body = make("div");
  const controls = make("div", { class: "controls first" }, select("Metric", names.map((name) => [name, TITLES[name]]), (value) => { metric = value; show(); }));
  // The places of the names that every word is a part of; a word of the title or of another name (a method's, for data sets) leaves all.
  function matching(own, others) {
    const free = (word) => [group.title, ...others].some((text) => text.toLowerCase().includes(word));
    return own.flatMap((name, place) => (words.every((word) => name.toLowerCase().includes(word) || free(word)) ? [place] : []));
  }
  function show() {
    const found = group.metrics[metric];
    const methods = found.rows.map((row) => row.name);
    const rows = matching(methods, found.datasets).map((place) => found.rows[place]);
    const places = matching(found.datasets, methods);
    node.hidden = !rows.length || !places.length;
    if (node.hidden) return;
    const listed = new Set(rows.map((row) => row.name));
    const compared = found.pairs.filter((pair) => listed.has(pair.first) && listed.has(pair.second));
    const title = `${TITLES[metric]} over ${found.datasets.length} data sets`;
    const picture = new DOMParser().parseFromString(found.picture, "image/svg+xml").documentElement;
    body.replaceChildren(...found.caption.map((line) => make("p", { class: "note" }, line)), overDatasets(title, found, rows, places), make("div", { class: "scroll ranks" }, document.importNode(picture, true)));
    body.append(make("p", { class: "note" }, found.note));
    if (rows.length < found.rows.length || places.length < found.datasets.length) {
      body.append(make("p", { class: "note" }, `Filtered: ranks, means, picture and p are those of all ${found.rows.length} methods and ${found.datasets.length} data sets.`));
    }
    if (compared.length) body.append(pairs(`${title}, in pairs`, compared));
  }
  node.append(controls, body);
  node.update = (wanted) => { words = wanted; show(); };
  return node;
}

// --- the page -------------------------------------------------------------------------------------------------------

const main = document.getElementById("main");
const sections = DATA.families.map(section);
const overall = DATA.overall.map(overallSection);
const nothing = make("p", { class: "note" }, "No method and no data set has such a name.");
main.replaceChildren(...overall, ...sections, nothing);
document.getElementById("about").textContent = `${Object.keys(DATA.records).length} records in ${sections.length} table${sections.length === 1 ? "" : "s"} of comparable numbers · made ${DATA.made.slice(0, 16).replace("T", " ")} UTC by inpbench ${DATA.version}`;
const link = (node) => make("a", { href: `#${node.id}` }, node.querySelector("h2").textContent);
const contents = [...overall, ...sections].map((node) => [node, link(node)]);
document.getElementById("contents").append(...contents.map(([, anchor]) => anchor));
const filter = document.getElementById("filter");
function update() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const [node, anchor] of contents) { node.update(words); anchor.hidden = node.hidden; }
  nothing.hidden = contents.some(([node]) => !node.hidden);
}
filter.addEventListener("input", update);
update();
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
// What is folded on a screen is read on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((node) => { node.open = true; node.dataset.folded = ""; }));
addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach((node) => { node.open = false; delete node.dataset.folded; }));
