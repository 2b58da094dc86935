"""What probes read is what the model reads: a processor's whole output, and the answer behind it."""

from __future__ import annotations

import pytest
import torch
from sightline.plugin.core.edits import OutputProbe
from sightline.plugin.core.families import find_family
from sightline.profiling.probes.direct import Direct, pictures_of, row_by_row

from tests.helpers import tiny
from tests.helpers.engine import NEW, generate

TILES = {(8, 16): 3, (16, 16): 5}  # of the tiny LLaVA-NeXT, by the picture's size, the overview among them


def alone(row: tiny.Inputs) -> tiny.Inputs:
    """As a processor gives one prompt: without the tiles, and a Q-Former's words, that only others have."""
    if "qformer_attention_mask" in row:
        words = row["qformer_attention_mask"][0].bool()
        row |= {name: row[name][:, words] for name in ("qformer_input_ids", "qformer_attention_mask")}
    if "image_sizes" in row:
        row["pixel_values"] = row["pixel_values"][:, : TILES[tuple(row["image_sizes"][0].tolist())]]
    return row


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.names(images=True))
def test_prompts_and_their_answers_are_read_as_generate_reads_them(family: str) -> None:
    """Two rows of different lengths and pictures: token types, tiles and what a Q-Former reads among what is told."""
    case = tiny.fresh(family)
    batch = case.inputs(2, lengths=(9, 6))
    rows = [alone(case.row(batch, i)) for i in range(2)]
    said = [generate(case.model, row) for row in rows]
    prompts = [row["input_ids"][0].tolist() for row in rows]
    width = max(map(len, prompts)) + NEW
    ids = torch.zeros(2, width, dtype=torch.long)
    for row, (prompt, one) in enumerate(zip(prompts, said, strict=True)):
        ids[row, : len(prompt) + NEW] = torch.tensor([*prompt, *one.tokens[0].tolist()])
    vision, seen = find_family(case.model).vision_inputs, []
    with Direct(case.model) as direct:
        more = row_by_row([pictures_of(row, vision) for row in rows], width)
        logits = direct({0: [OutputProbe(seen.append)]}, ids, **more)
    assert [output.shape[:2] for output in seen] == [ids.shape]
    for row, (prompt, one) in enumerate(zip(prompts, said, strict=True)):
        read = logits[row, len(prompt) - 1 : len(prompt) + NEW - 1]
        torch.testing.assert_close(read, one.logits[0], atol=1e-4, rtol=1e-3)
