"""The samples of a report as data for its page: each reply in pieces, the wrong words marked, and where its picture is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import DataError
from ..runner.evaluate import SAMPLES
from .folders import ReportSection

PLAIN, RIGHT, WRONG = range(3)
"""Kinds of pieces: said without a judgement, true, hallucinated or wrong."""
_ASIDE = ("ids", "choices", "label", "objects")


def view(section: ReportSection, pictures: Mapping[Path, int], images: Path | None = None) -> dict[str, Any]:
    """The section for the page's script: `runs`, and `samples` of `id, ask, truth, picture` (its number or null), `said`.

    `said` has for each run `text` ([kind, piece] in order) and `more`, or the number of an earlier run that said the same.

    Raises:
        DataError: a sample is damaged.
    """
    runs = [entry["name"] for entry in section.runs if any(entry["name"] in row["runs"] for row in section.samples)]
    alike = len({row.get("text") for row in section.samples}) == 1
    samples = []
    for row in section.samples:
        try:
            said: list[Any] = []
            for name in runs:
                one = _said(row["runs"][name], row.get("truth") or {})
                said.append(said.index(one) if one in said else one)
            file = picture_file(row, images)
            samples.append(
                {
                    "id": row["id"],
                    "ask": "" if alike else str(row.get("text", "")),
                    "truth": _truth(row.get("truth") or {}),
                    "picture": None if file is None else pictures[file],
                    "said": said,
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(f"{row['at'] / SAMPLES}: sample {row['id']!r} is damaged ({error})") from error
    return {"runs": runs, "samples": samples}


def picture_file(row: Mapping[str, Any], images: Path | None) -> Path | None:
    """Where a sample's picture lies: as its folder says, or else a file of that name in `images`."""
    if not row.get("image"):
        return None
    path = Path(row["at"]) / str(row["image"])
    return images / path.name if images is not None and not path.is_file() else path


def question(section: ReportSection) -> str | None:
    """What all samples were asked, where that is one text."""
    texts = {row.get("text") for row in section.samples}
    return str(next(iter(texts))) if len(texts) == 1 else None


def pieces(reply: str, mentions: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """A text cut at its mentions, as [kind, piece]; the pieces joined are the text.

    Raises:
        ValueError: mentions overlap, or lie outside the text.
    """
    found: list[list[Any]] = []
    at = 0
    for mention in mentions:
        start, end = mention["start"], mention["end"]
        if not at <= start < end <= len(reply):
            raise ValueError(f"characters {start} to {end} are not behind {at} of {len(reply)}")
        found += [[PLAIN, reply[at:start]], [WRONG if mention["hallucinated"] else RIGHT, reply[start:end]]]
        at = end
    return [piece for piece in [*found, [PLAIN, reply[at:]]] if piece[1]]


def _said(detail: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
    if "mentions" in detail:
        text = pieces(detail["reply"], detail["mentions"])
        if "objects" not in truth:
            return {"text": text}
        missed = sorted(set(truth["objects"]) - {one["name"] for one in detail["mentions"]})
        return {"text": text, "more": f"missed: {', '.join(missed) or 'nothing'}"}
    reply = _likeliest(detail["logprobs"], truth.get("choices")) if "logprobs" in detail else str(detail["reply"])
    kind = PLAIN if "right" not in detail else RIGHT if detail["right"] else WRONG
    return {"text": [[kind, reply]] if reply else []}


def _likeliest(logprobs: Sequence[float], choices: Sequence[str] | None) -> str:
    best = max(range(len(logprobs)), key=logprobs.__getitem__)
    return f"{choices[best] if choices else f'choice {best}'} ({logprobs[best]:.2f})"


def _truth(truth: Mapping[str, Any]) -> str:
    parts = [", ".join(truth["objects"])] if "objects" in truth else []
    parts += [str(truth["label"])] if "label" in truth else []
    parts += [f"{key}: {_listed(one)}" for key, one in truth.items() if key not in _ASIDE]
    return "; ".join(parts)


def _listed(one: Any) -> str:
    return ", ".join(map(str, one)) if isinstance(one, list) else str(one)
