"""Every model type that `known.json` lists is what it says: proved on a tiny model of it.

Types that differ in kind run in `make test`, the others in `make test-all`.
"""

from __future__ import annotations

import json
import re

import pytest
import transformers as tf

from tests.zoo.prove import plain_fault, prove
from tests.zoo.table import TABLE, reason

#: one of each kind: grids of patches with deepstack, shared keys and per-layer inputs, tiles, a hybrid with pictures, prefix
#: reading, an encoder-decoder's refusal; learned sinks, capped logits, chunked windows and no rotation, latents with experts,
#: a hybrid, layers with fewer heads, a cache with a window under a mask that has none
KINDS = {
    "image": ("qwen3_vl", "gemma4", "mistral3", "qwen3_5", "paligemma", "florence2"),
    "text": ("gpt_oss", "gemma2", "llama4_text", "deepseek_v3", "qwen3_next", "laguna", "moshi"),
}
TRIED = json.loads(TABLE.read_text(encoding="utf-8"))
KNOWN = TRIED["types"]
READS = {"pictures": "image", "text": "text"}
CASES = [
    pytest.param(
        READS[one["reads"]],
        one["name"],
        one["results"],
        id=f"{READS[one['reads']]}-{one['name']}",
        marks=() if one["name"] in KINDS[READS[one["reads"]]] else pytest.mark.matrix,
    )
    for one in KNOWN
]


@pytest.mark.parametrize(("kind", "name", "listed"), CASES)
def test_a_type_is_what_the_table_says(kind: str, name: str, listed: dict[str, str]) -> None:
    """Every check that is listed as ok holds, what is refused is refused, and nothing fails.

    On the release that was tried the reasons are those of the table, too: none was written by hand.
    """
    found = prove(kind, name)
    if "build" in listed and "build" not in found:
        pytest.skip("it can be built here: a package is installed that the table was made without, or another release")
    if found.get("attach") != listed.get("attach") and (fault := plain_fault(kind, name)) is not None:
        pytest.skip(f"this release of transformers cannot run it, attached or not: {fault}")
    failed = {check: said for check, said in found.items() if said.startswith("FAILED")}
    assert not failed
    if tf.__version__ == TRIED["transformers"]:
        assert _unnumbered({check: reason(said) for check, said in found.items()}) == _unnumbered(listed)
    else:
        good = {check for check, said in found.items() if said == "ok"}
        assert good >= {check for check, said in listed.items() if said == "ok"}


def _unnumbered(results: dict[str, str]) -> dict[str, str]:
    """Without the numbers in them, which another processor may round otherwise."""
    return {check: re.sub(r"\d\S*", "N", said) for check, said in results.items()}


def test_the_table_has_no_failure() -> None:
    """A check that does not hold has a reason in it, of the package or of the model."""
    wrong = [one["name"] for one in KNOWN if any(re.match("FAILED|not tried", s) for s in one["results"].values())]
    assert wrong == []
