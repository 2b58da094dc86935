// One page of samples at a time, searched and filtered, built from JSON in the page (`view` in cards.py says what it is).
// It sets text only (`textContent`), never HTML, so that nothing in a reply can become code.
(() => {
"use strict";
const PAGE = 20;
const read = id => JSON.parse(document.getElementById(id).textContent);
const make = (tag, kind, text) => {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
};
const pictures = read("pictures");
const TAGS = ["span", "b", "mark"];
const count = number => number.toLocaleString("en");

for (const root of document.querySelectorAll(".samples")) {
  const data = read(root.dataset.from);
  const at = name => root.querySelector(`[data-is="${name}"]`);
  const [left, right, search, differ, wrong, told, cards, back, next] =
    ["left", "right", "search", "differ", "wrong", "told", "cards", "back", "next"].map(at);
  const said = (sample, run) => typeof sample.said[run] === "number" ? sample.said[sample.said[run]] : sample.said[run];
  const plain = (sample, run) => said(sample, run).text.map(piece => piece[1]).join("");
  const words = data.samples.map(sample =>
    [sample.id, sample.ask, sample.truth, ...data.runs.map((_, run) => plain(sample, run))].join("\n").toLowerCase());
  let from = 0, found = [];

  data.runs.forEach((name, run) => {
    left.append(new Option(name, run));
    right.append(new Option(name, run));
  });
  right.append(new Option("all runs", "all"));
  right.value = data.runs.length > 1 ? data.runs.length - 1 : "all";
  const shown = () => right.value === "all" ? data.runs.map((_, run) => run)
    : [...new Set([Number(left.value), Number(right.value)])];

  const reply = (sample, run) => {
    const box = make("div"), one = said(sample, run);
    box.append(make("h4", "", data.runs[run]));
    const text = make("p", "reply");
    for (const [kind, piece] of one.text) text.append(make(TAGS[kind], "", piece));
    if (!one.text.length) text.append(make("i", "", "nothing said"));
    box.append(text);
    if (one.more) box.append(make("p", "missed", one.more));
    return box;
  };
  const card = sample => {
    const box = make("article", "card"), picture = make("div", "picture");
    const source = sample.picture === null ? null : pictures[sample.picture];
    if (source) {
      const image = make("img");
      image.alt = sample.id;
      image.decoding = "async";
      image.src = source;
      picture.append(image);
    }
    picture.append(make("p", "id", sample.id));
    if (sample.truth) picture.append(make("p", "truth", sample.truth));
    const right = make("div", "said"), columns = make("div", "columns");
    if (sample.ask) right.append(make("p", "ask", sample.ask));
    columns.append(...shown().map(run => reply(sample, run)));
    right.append(columns);
    box.append(picture, right);
    return box;
  };
  const draw = () => {
    cards.replaceChildren(...found.slice(from, from + PAGE).map(number => card(data.samples[number])));
    const last = Math.min(from + PAGE, found.length);
    told.textContent = found.length ? `${count(from + 1)} to ${count(last)} of ${count(found.length)}`
      + (found.length < data.samples.length ? ` (of ${count(data.samples.length)} in all)` : "") : "none";
    back.disabled = from === 0;
    next.disabled = last === found.length;
  };
  const filter = () => {
    const wanted = search.value.trim().toLowerCase(), runs = shown();
    found = [...data.samples.keys()].filter(number => {
      const sample = data.samples[number];
      return (!wanted || words[number].includes(wanted))
        && (!differ.checked || new Set(runs.map(run => plain(sample, run))).size > 1)
        && (!wrong.checked || runs.some(run => said(sample, run).text.some(piece => piece[0] === 2)));
    });
    from = 0;
    draw();
  };
  const turn = by => {
    from += by;
    draw();
    root.scrollIntoView();
  };
  back.addEventListener("click", () => turn(-PAGE));
  next.addEventListener("click", () => turn(PAGE));
  for (const node of [left, right, differ, wrong]) node.addEventListener("change", filter);
  search.addEventListener("input", filter);
  at("form").addEventListener("submit", event => event.preventDefault());
  filter();
}
})();
