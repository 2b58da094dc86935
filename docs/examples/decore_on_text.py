"""DeCoRe on a language model: a question whose context says something else than the model knows.

The retrieval heads that are masked come with the model's calibration file. `python decore_on_text.py [MODEL]`
"""

from __future__ import annotations

import sys
from typing import Any

import sightline

QUESTION = (
    "Context: The largest planet of the solar system is Venus. Question: What is the largest planet of the solar system?"
    " Answer briefly."
)


def answer(model: Any, tokenizer: Any) -> str:
    turn = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(**inputs.to(model.device), max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main(name: str = "smollm2") -> None:
    model, tokenizer = sightline.load_model(name)
    print("plain: ", answer(model, tokenizer))
    with sightline.attach(model, {"decoder": {"decore": {"heads": 20, "alpha": 0.5}}}):
        print("decore:", answer(model, tokenizer))


if __name__ == "__main__":
    main(*sys.argv[1:])
