"""`sightline calibrate`: measure a model and write its calibration file."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..common.documents import is_file
from ..common.errors import CalibrationError, ConfigError, SightlineError
from ..common.files import locked, versions, write_text
from ..common.readers import Notes
from ..models.samples import TESTBED
from ..plugin.calibration.files import Calibration, find_shipped, model_name, own_file
from ..plugin.calibration.sections import RetrievalHeads, Source, SourcedSection
from ..plugin.core.host import host_of
from .data.examples import check_source, examples
from .job import Job, Partial, rounded
from .probes import retrieval
from .profiles import ALL, PROFILES, chosen

IMPORT = "import"  # stands for a profile where heads were taken over from a file


@dataclass
class Measured:
    """The file that was written, the measured sections by profile, and for the others why there is none."""

    path: Path
    calibration: Calibration
    sections: dict[str, SourcedSection] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [
            {"profile": name, "section": section_of(name)}
            | (fact.source.model_dump(include={"samples", "seconds"}) if fact.source else {})
            for name, fact in self.sections.items()
        ]
        return {
            "file": str(self.path),
            "model": self.calibration.model,
            "measured": rows,
            "skipped": self.skipped,
            "notes": self.notes,
        }


def calibrate(
    model: Any,
    processor: Any,
    *,
    profiles: Sequence[str] = (ALL,),
    data: str | Path = TESTBED,
    samples: int = 300,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    imported: Path | None = None,
    batch: int = 8,
    command: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    advance: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Measured:
    """Measure a model and write its calibration file; sections that the file has and that are not measured stay.

    Args:
        model, processor: as `sightline.attach` takes them; a tokenizer for a text model.
        profiles: names of `PROFILES`, or "all" for those that suit the model. What "all" names and cannot be measured
            is skipped and said; what was named itself is an error.
        data: a folder (see `data.py`), or "testbed" for generated examples.
        samples, seed: how many examples, and which.
        out: the file; by default the one in which `calibration: auto` looks first.
        resume: continue from what an interrupted run of the same request left beside the file.
        imported: a public file of retrieval head scores to take over.
        batch: examples at a time; halved where memory runs out.
        command: what the file names as its maker.
        say, advance: as for `Job`.

    Raises:
        SightlineError: nothing could be measured, or the data, the file or what was left behind cannot be read.
    """
    host = host_of(model)
    sees = bool(host.family.image_token_fields) and hasattr(processor, "image_processor")
    names = chosen(profiles, sees)
    if not names and imported is None:
        raise ConfigError(f"nothing to measure: name profiles, {ALL} or {', '.join(PROFILES)}")
    path = own_file(model) if out is None else out
    with locked(path.with_name(f".{path.name}.lock"), path):
        file = _begun(model, path, default=out is None)
        notes = Notes()
        shown = examples(data, samples, seed=seed, sees=sees, notes=notes) if names else []
        for line in notes.lines():
            say(line)
        request = {"model": model_name(model), "dtype": str(model.dtype), "data": str(data), "seed": seed}
        request |= {
            "samples": len(shown),
            "examples": hashlib.sha256("\n".join(one.id for one in shown).encode()).hexdigest(),
        }
        kept = Partial(path.with_name(f"{path.name}.partial"), request, resume=resume)
        hooks: dict[str, Any] = {"say": say, "advance": advance, "known": _known(model, file)}
        job = Job(model, processor, shown, host.facts(None), kept, seed=seed, batch=batch, **hooks)
        measured = Measured(path, file, notes=notes.lines())
        if imported is not None:
            measured.sections[IMPORT] = _imported(imported, file)
        try:
            _measure(job, names, profiles, measured)
        except BaseException:
            kept.save()
            if kept.done:
                say(f"kept what was measured in {kept.path}: --resume continues")
            raise
        if not measured.sections:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in measured.skipped.items())
            raise CalibrationError(f"nothing could be measured: {reasons}")
        measured.calibration = _merged(measured, command)
        write_text(path, measured.calibration.dump())
        kept.remove()
    return measured


def check(profiles: Sequence[str], data: str | Path, out: Path | None, imported: Path | None) -> None:
    """What can be checked of a request before its model is there.

    Raises:
        SightlineError: an unknown profile, or a folder or file that cannot be used.
    """
    chosen(profiles, sees=True)
    check_source(data)
    if imported is not None:
        retrieval.read_public(imported)
    if out is not None and is_file(out):
        Calibration.load(out)


def _measure(job: Job, names: Sequence[str], named: Sequence[str], measured: Measured) -> None:
    """Measure the profiles of these names; what the user did not name itself may fail."""
    for name in names:
        job.profile = name
        try:
            with job.partial.timed(name):
                fact = PROFILES[name].measure(job)
        except SightlineError as error:
            if name in named:
                raise
            measured.skipped[name] = str(error)
        else:
            source = Source(kind="measured", samples=job.samples, seconds=round(job.partial.seconds[name], 1))
            measured.sections[name] = job.known[PROFILES[name].section] = fact.model_copy(update={"source": source})


def _merged(measured: Measured, command: str | None) -> Calibration:
    """The old file with the new sections.

    Command, versions and date stand at the head of a file that is new as a whole, else in the new sections.
    """
    found = {name: value for name, value in versions().items() if name in ("sightline", "torch", "transformers")}
    origin: dict[str, Any] = {"command": command, "versions": found, "date": datetime.date.today().isoformat()}
    new = {section_of(name): fact for name, fact in measured.sections.items()}
    if measured.calibration.facts().keys() <= new.keys():
        head = {"source": Source(kind="measured", **origin)}
    else:
        head = {}
        for section, fact in new.items():
            if fact.source is not None and fact.source.kind == "measured":
                new[section] = fact.model_copy(update={"source": fact.source.model_copy(update=origin)})
    return Calibration.load(measured.calibration.model_copy(update={**head, **new}).model_dump(by_alias=True))


def section_of(profile: str) -> str:
    """The section that a profile makes, or the import."""
    return PROFILES[profile].section if profile in PROFILES else "retrieval_heads"


def _begun(model: Any, path: Path, *, default: bool) -> Calibration:
    """The file that is added to: the one in that place, or in the default place what is known of the model.

    Else one without sections, under the name by which it will be found; no folder of this machine is in it.

    Raises:
        CalibrationError: the file there is for another model.
    """
    known = find_shipped(model)
    if path.is_file() or (default and known is not None):
        file = Calibration.load(path) if path.is_file() else known
        assert file is not None
        file.check(*_shape(model), int(model.config.get_text_config().hidden_size))
        return file
    if known is not None:
        name, aliases = known.model, known.aliases
    else:
        parts = [part for part in model_name(model).replace("\\", "/").split("/") if part]
        is_hub_name = len(parts) == 2 and model_name(model)[0].isalnum()
        name, aliases = "/".join(parts) if is_hub_name else parts[-1], []
    architecture, layers, heads = _shape(model)
    return Calibration(model=name, aliases=aliases, architecture=architecture, layers=layers, heads=heads)


def _known(model: Any, file: Calibration) -> dict[str, SourcedSection]:
    """Sections that a profile may build on: the file's, and those known of the model under its name."""
    known = find_shipped(model)
    fits = known is not None and (known.architecture, known.layers, known.heads) == _shape(model)
    return {**(known.facts() if known is not None and fits else {}), **file.facts()}


def _shape(model: Any) -> tuple[str, int, int]:
    text = model.config.get_text_config()
    return str(model.config.model_type), int(text.num_hidden_layers), int(text.num_attention_heads)


def _imported(path: Path, target: Calibration) -> RetrievalHeads:
    """Retrieval heads from a public file. Raises CalibrationError where it is for another shape."""
    scores = retrieval.read_public(path)
    if (len(scores), len(scores[0])) != (target.layers, target.heads):
        raise CalibrationError(
            f"'{path}' scores {len(scores)} layers of {len(scores[0])} heads, but the model has {target.layers} layers"
            f" of {target.heads} heads: take the file made for it"
        )
    source = Source(kind="published", reference=f"public head scores {path.name} (arXiv 2404.15574)")
    return RetrievalHeads(scores=rounded(torch.tensor(scores)), source=source)
