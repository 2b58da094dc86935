// One page of samples at a time, searched and filtered, built from JSON in the page (`view` in cards.py says what it is).
// It sets text only (`textContent`), never HTML, so that nothing in a reply can become code.
(() => {
"use strict";
const PAGE = 12;
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
  const [left, right, search, wrong, chips, told, cards, back, next] =
    ["left", "right", "search", "wrong", "chips", "told", "cards", "back", "next"].map(at);
  const said = (sample, run) => typeof sample.said[run] === "number" ? sample.said[sample.said[run]] : sample.said[run];
  const plain = (sample, run) => said(sample, run).text.map(piece => piece[1]).join("");
  const words = data.samples.map(sample =>
    [sample.id, sample.ask, sample.truth, ...data.runs.map((_, run) => plain(sample, run))].join("\n").toLowerCase());
  const marks = (sample, run) => said(sample, run).text.filter(piece => piece[0] === 2).length;
  const judged = data.samples.some(sample => data.runs.some((_, run) => said(sample, run).text.some(piece => piece[0])));
  const CHANGES = ["helped", "harmed", "unchanged"];
  let from = 0, found = [], change = "all";

  data.runs.forEach((name, run) => {
    left.append(new Option(name, run));
    right.append(new Option(name, run));
  });
  right.append(new Option("all runs", "all"));
  right.value = data.runs.length > 1 ? data.runs.length - 1 : "all";
  const shown = () => right.value === "all" ? data.runs.map((_, run) => run)
    : [...new Set([Number(left.value), Number(right.value)])];
  const compared = () => judged && shown().length === 2;
  const changed = sample => {
    const [before, after] = shown().map(run => marks(sample, run));
    return CHANGES[after < before ? 0 : after > before ? 1 : 2];
  };

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
    if (compared()) {
      const kind = changed(sample), [before, after] = shown().map(run => marks(sample, run));
      picture.append(make("span", `badge ${kind}`, `${kind}: ${before} → ${after} marked`));
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
    cards.classList.toggle("several", shown().length > 2);
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
        && (!wrong.checked || runs.some(run => marks(sample, run)));
    });
    chips.hidden = !compared();
    if (compared()) {
      const each = {all: [...found], helped: [], harmed: [], unchanged: []};
      for (const number of found) each[changed(data.samples[number])].push(number);
      for (const input of chips.querySelectorAll("input")) {
        input.nextSibling.textContent = `${input.value} ${count(each[input.value].length)}`;
      }
      found = each[change];
    }
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
  chips.addEventListener("change", event => {
    change = event.target.value;
    filter();
  });
  for (const node of [left, right, wrong]) node.addEventListener("change", filter);
  search.addEventListener("input", filter);
  at("form").addEventListener("submit", event => event.preventDefault());
  filter();
}
})();
