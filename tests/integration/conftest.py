"""Tests of the lmms-eval and lm-eval adapters. They run in an environment of their own (see constraints-eval.txt)."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from given import ENDINGS, FACTS

if importlib.util.find_spec("lmms_eval") is None or importlib.util.find_spec("lm_eval") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(autouse=True, scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is left in the home folder; processes that a test starts use the same."""
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(os.environ["HF_DATASETS_CACHE"])


@pytest.fixture(scope="session")
def embedded() -> tuple[Any, Any]:
    from sightline.models.loading import load_model

    return load_model("embedded")


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    from sightline.models.loading import load_model

    return load_model("smollm2")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MemoTrap's and NQ-Swap's files, very short ones."""
    folder = tmp_path_factory.mktemp("texts")
    names = ("1-proverb-ending", "2-proverb-translation", "3-hate-speech-ending", "4-history-of-science-qa")
    for name, (prompt, endings) in zip(names, ENDINGS, strict=True):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerows(
                [["prompt", "classes", "answer_index"], [prompt, repr(endings), 0], [prompt, endings[::-1], 1]]
            )
    lines = [{"sub_context": c, "question": q, "sub_answer": [s], "org_answer": [o]} for c, q, s, o in FACTS]
    (folder / "nqswap.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
