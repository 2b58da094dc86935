"""POPE on a folder of photographs: `python pope_on_photos.py [FOLDER] [MODEL]`.

The folder has pictures and a COCO `instances.json`; without one, a few scenes of the embedded model are written as such a
folder first. The questions, the scoring and the report are `sightline eval`'s.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sightline import testbed


def scenes(folder: Path, number: int = 3) -> None:
    """Generated scenes as a COCO folder: what you would have of photographs."""
    drawn = testbed.scenes("test", number)
    kinds = {name: 1 + at for at, name in enumerate(testbed.CATEGORIES)}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for at, scene in enumerate(drawn):
        scene.image.save(folder / "images" / f"{at}.png")
    pairs = [(at, name) for at, scene in enumerate(drawn) for name in sorted(scene.names)]
    instances = {
        "images": [{"id": at, "file_name": f"{at}.png"} for at in range(number)],
        "categories": [{"id": kind, "name": name} for name, kind in kinds.items()],
        "annotations": [
            {"id": at, "image_id": image, "category_id": kinds[name]} for at, (image, name) in enumerate(pairs)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")


def main(given: str | None = None, model: str = "embedded") -> None:
    folder = Path(given or "photos")
    if given is None:
        scenes(folder)
    run = [sys.executable, "-m", "sightline"]
    out = "pope-out"
    asked = ["eval", "pope", model, "--data", str(folder), "--config", "vhr", "--out", out, "--batch", "60"]
    subprocess.run([*run, *asked], check=True)
    subprocess.run([*run, "report", out], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
