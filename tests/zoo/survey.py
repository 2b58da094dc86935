"""Runs the proof over the mapped types: `python -m tests.zoo.survey [TYPE.. | failed] --out FILE`, one process per type.

Each type runs in a fork of this process under a time limit; what is known already is kept, so that a run can be continued.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

from tests.zoo import prove

torch.set_num_threads(1)
LIMIT = 120  # seconds


def child(kind: str, name: str, pipe: Any) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    begun = time.process_time()
    results = prove.prove(kind, name)
    pipe.send({**results, "seconds": f"{time.process_time() - begun:.1f}"})
    pipe.close()


def one(context: Any, kind: str, name: str) -> dict[str, str]:
    """The results of one type."""
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(kind, name, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv() if mine.poll(LIMIT) else {"build": f"plain: over {LIMIT} s"}
    except EOFError:
        return {"build": "FAILED: the process died"}
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("zoo.json"))
    parser.add_argument("--kind", choices=("image", "text"))
    parser.add_argument("--part", default="0/1", help="the first of two processes: 0/2, the second: 1/2")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    context = multiprocessing.get_context("fork")
    part, parts = map(int, args.part.split("/"))
    for kind, (_, mapping) in prove.LISTS.items():
        for number, name in enumerate(mapping):
            if number % parts != part:
                continue
            key = f"{kind}:{name}"
            bad = [v for v in results.get(key, {}).values() if not v.startswith("ok") and not v[0].isdigit()]
            wanted = name in args.types or key in args.types or ("failed" in args.types and bad)
            if (args.types and not wanted) or (not args.types and key in results) or args.kind not in (None, kind):
                continue
            results[key] = one(context, kind, name)
            args.out.write_text(json.dumps(results, indent=0))
            bad = {k: v[:160] for k, v in results[key].items() if v != "ok" and k != "seconds"}
            print(key, results[key].get("seconds"), bad or "ok", flush=True)


if __name__ == "__main__":
    main()
