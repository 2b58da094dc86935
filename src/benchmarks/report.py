"""The HTML report of a demo: one file, nothing loaded from outside, every text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from .chair import LAST_POSITION, Vocabulary
from .charts import forest, heat, points, positions
from .pope import SPLITS
from .run import PLAIN, Run
from .style import STYLE

_SCORES_NOTE = (
    "Percent, with 95 % bootstrap intervals over scenes below and the change against plain on the left, coloured where "
    "its interval leaves zero out. CHAIR<sub>S</sub>: captions that name an absent object; CHAIR<sub>I</sub>: mentions "
    "of absent objects; lower is better, if recall holds. Yes: share of yes among the replies; the truth is half."
)


def page(result: Mapping[str, Any], scenes: Sequence[Any], runs: Sequence[Run], vocabulary: Vocabulary) -> str:
    """The whole page.

    Args:
        result: the JSON-ready result of a demo.
        scenes: the scenes (`image`, `names`, `kind`, `index`), in the order of the captions.
        runs: the runs with their captions under `replies["chair"]`, plain first; the last one is set beside plain.
        vocabulary: finds the objects that a caption names.
    """
    entries = result["runs"]
    label = escape(str(result["label"]))
    facts = (
        f"{len(scenes)} scenes of the {escape(str(result.get('split', 'test')))} split, seed {result.get('seed', 0)}"
    )
    body = [
        f'<header><p class="tag">{label}</p><h1>Sightline demo</h1>'
        "<p>A small vision-language model, trained for this project on generated scenes with strong co-occurrence "
        "habits, describes scenes it has never seen and answers questions about them: plain, then with Sightline "
        f"attached. No weight is changed. Greedy decoding, {facts}. The numbers speak of this model only.</p></header>",
        _section("Scores", _captions_table(entries) + _questions_table(entries), _SCORES_NOTE),
        _section("Change against plain", _forests(entries), "Percentage points with paired 95 % bootstrap intervals."),
        _section("Where in the caption it goes wrong", _positions(entries)),
        _head_maps(runs),
        _scenes(scenes, runs, vocabulary),
        _footer(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Sightline demo: {label}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def annotate(caption: str, truth: Collection[str], vocabulary: Vocabulary) -> str:
    """The caption as HTML: hallucinated mentions in `<mark>`, true ones in `<b>`, all text escaped."""
    parts, at = [], 0
    for mention in vocabulary.mentions(caption):
        tag = "b" if mention.name in truth else "mark"
        parts.append(escape(caption[at : mention.start]))
        parts.append(f"<{tag}>{escape(caption[mention.start : mention.end])}</{tag}>")
        at = mention.end
    return "".join(parts) + escape(caption[at:])


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _captions_table(entries: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("CHAIR<sub>S</sub>", "CHAIR<sub>I</sub>", "recall", "words", "time"))
    rows = []
    for entry in entries:
        scores, between, change = (part["chair"] for part in (entry, entry["intervals"], entry["differences"]))
        plain = entry["name"] == PLAIN
        cells = "".join(
            _cell(scores[key], between[key], None if plain else change[key], key in ("s", "i"))
            for key in ("s", "i", "recall")
        )
        low, high = between["words"]
        cells += f"<td>{scores['words']:.1f}<small>{low:.1f} – {high:.1f}</small></td>"
        cells += f"<td>{entry['time_ratio']:.2f} ×</td>"
        rows.append(f'<tr><th scope="row">{escape(entry["name"])}</th>{cells}</tr>')
    return _table(f"<tr><th>captions</th>{head}</tr>", rows)


def _questions_table(entries: Sequence[Mapping[str, Any]]) -> str:
    groups = "".join(f'<th colspan="3">{split}</th>' for split in SPLITS)
    head = "<th>accuracy</th><th>F1</th><th>yes</th>" * len(SPLITS)
    rows = []
    for entry in entries:
        cells = ""
        for split in SPLITS:
            scores, between, change = (
                part["pope"][split] for part in (entry, entry["intervals"], entry["differences"])
            )
            for key in ("accuracy", "f1"):
                cells += _cell(scores[key], between[key], None if entry["name"] == PLAIN else change[key], False)
            cells += _cell(scores["yes_ratio"], between["yes_ratio"], None, False)
        rows.append(f'<tr><th scope="row">{escape(entry["name"])}</th>{cells}</tr>')
    asked = [entry["pope"][split] for entry in entries for split in SPLITS]
    unparsed, total = (sum(scores[key] for scores in asked) for key in ("unparsed", "n"))
    note = f'<p class="note">Replies that say neither yes nor no, counted as yes: {unparsed} of {total}.</p>'
    return _table(f"<tr><th>questions</th>{groups}</tr><tr><th></th>{head}</tr>", rows) + note


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(value: float, between: Sequence[float], change: Mapping[str, Any] | None, lower_is_better: bool) -> str:
    """A score in percent with its interval; the change to plain is coloured when its interval leaves zero out."""
    delta = ""
    if change is not None:
        low, high = change["interval"]
        kind = ("good" if (high < 0) == lower_is_better else "bad") if low > 0 or high < 0 else "open"
        delta = f'<span class="delta {kind}">{points(change["value"])}</span>'
    low, high = between
    return f"<td>{delta}{100 * value:.1f}<small>{100 * low:.1f} – {100 * high:.1f}</small></td>"


def _forests(entries: Sequence[Mapping[str, Any]]) -> str:
    def rows(*path: str) -> list[tuple[str, float, tuple[float, float]]]:
        found = []
        for entry in entries[1:]:
            change = entry["differences"]
            for key in path:
                change = change[key]
            found.append((entry["name"], change["value"], tuple(change["interval"])))
        return found

    charts = [
        forest("CHAIR_I (lower is better)", rows("chair", "i"), lower_is_better=True),
        forest("CHAIR_S (lower is better)", rows("chair", "s"), lower_is_better=True),
        forest("Object recall (higher is better)", rows("chair", "recall"), lower_is_better=False),
        forest(
            "POPE accuracy, adversarial (higher is better)",
            rows("pope", "adversarial", "accuracy"),
            lower_is_better=False,
        ),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _positions(entries: Sequence[Mapping[str, Any]]) -> str:
    chosen = [entries[0], entries[-1]] if len(entries) > 1 else [entries[0]]
    series = [(entry["name"], entry["chair"]["by_position"]) for entry in chosen]
    return positions("Hallucinated share of the 1st, 2nd, … object that a caption names", series, LAST_POSITION)


def _head_maps(runs: Sequence[Run]) -> str:
    charts = [
        heat(f"{item.name}: heads that {method} chose", grid.tolist())
        for item in runs
        for method, grid in item.head_maps.items()
    ]
    if not charts:
        return ""
    note = (
        "Layers from top to bottom, heads from left to right; the deeper the colour, the more often a head is chosen."
    )
    return _section("Head maps", f'<div class="charts">{"".join(charts)}</div>', note)


def _scenes(scenes: Sequence[Any], runs: Sequence[Run], vocabulary: Vocabulary) -> str:
    cards = "".join(_card(number, scene, runs, vocabulary) for number, scene in enumerate(scenes))
    return (
        '<section><h2>Scenes</h2><p class="note"><mark>marked</mark>: named, but not in the scene; '
        "<b>underlined</b>: named and there.</p>"
        '<input type="checkbox" id="changed"><label for="changed">only scenes whose two captions differ</label>'
        f'<div class="cards">{cards}</div></section>'
    )


def _card(number: int, scene: Any, runs: Sequence[Run], vocabulary: Vocabulary) -> str:
    captions = {item.name: item.replies["chair"][number] for item in runs}
    shown = [runs[0].name] if len(runs) == 1 else [runs[0].name, runs[-1].name]
    others = [item.name for item in runs if item.name not in shown]
    columns = "".join(_caption(name, captions[name], scene.names, vocabulary) for name in shown)
    more = "".join(_caption(name, captions[name], scene.names, vocabulary) for name in others)
    more = f"<details><summary>other runs</summary><div class='columns'>{more}</div></details>" if more else ""
    same = " same" if len({captions[name] for name in shown}) == 1 else ""
    title = escape(f"scene {scene.index} · {scene.kind}")
    return (
        f'<article class="card{same}"><div class="picture"><img alt="{title}" src="{_data_uri(scene.image)}">'
        f'<p>{title}</p><p class="truth">{escape(", ".join(sorted(scene.names)))}</p></div>'
        f'<div class="said"><div class="columns">{columns}</div>{more}</div></article>'
    )


def _caption(name: str, caption: str, truth: Collection[str], vocabulary: Vocabulary) -> str:
    named = {mention.name for mention in vocabulary.mentions(caption)}
    missed = escape(", ".join(sorted(set(truth) - named))) or "nothing"
    text = annotate(caption, truth, vocabulary) or "<i>nothing said</i>"
    return f'<div><h3>{escape(name)}</h3><p>{text}</p><p class="missed">missed: {missed}</p></div>'


def _data_uri(image: Any) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _footer(result: Mapping[str, Any]) -> str:
    import yaml

    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    hashes = "".join(
        f"<li>{escape(name)}: <code>{escape(value)}</code></li>" for name, value in result["hashes"].items()
    )
    settings = "".join(
        f"<h3>{escape(entry['name'])}</h3><pre>{escape(yaml.safe_dump(dict(entry['config']), sort_keys=False))}</pre>"
        for entry in result["runs"][1:]
    )
    return (
        f"<footer><h2>How this was made</h2><pre>{escape(str(result['command']))}</pre><p>{escape(versions)}</p>"
        f"<ul>{hashes}</ul><details><summary>settings of each run</summary>{settings}</details>"
        "<p>Time is the sum of the caption <code>generate</code> calls over that of plain, batch "
        f"{result.get('batch', '?')}, each batch run under every setting in turn. Intervals are percentile bootstraps "
        "over scenes; changes are paired.</p></footer>"
    )
