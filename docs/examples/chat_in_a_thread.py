"""A chat about a picture, streamed from a thread: the reply is printed while the model, with VHR attached, goes on.

Each turn goes on from the cache of the turn before, so that nothing is read twice.
"""

from __future__ import annotations

from threading import Thread
from typing import Any

import sightline
import torch
from sightline import testbed
from transformers import TextIteratorStreamer

QUESTIONS = (testbed.question("boat"), testbed.question("giraffe"))


class Chat:
    """A conversation about one picture."""

    def __init__(self, model: Any, processor: Any, image: Any):
        self.model, self.processor, self.image = model, processor, image
        self.said: Any = None

    def inputs(self, question: str) -> dict[str, Any]:
        """The first turn with the picture; later ones as the tokens so far, the new words, and the cache."""
        if self.said is None:
            text = testbed.prompt(self.processor, question)
            return dict(self.processor(images=self.image, text=text, return_tensors="pt"))
        turn = self.processor.tokenizer(f"USER: {question} ASSISTANT:", add_special_tokens=False, return_tensors="pt")
        ids = torch.cat([self.said.sequences, turn["input_ids"]], dim=1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "past_key_values": self.said.past_key_values,
        }

    def ask(self, question: str) -> None:
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        given = {**self.inputs(question), "max_new_tokens": 32, "do_sample": False, "streamer": streamer}
        thread = Thread(target=self._generate, args=(given,))
        thread.start()
        print(f"{question} ", end="")
        for piece in streamer:
            print(piece, end="", flush=True)
        print()
        thread.join()

    def _generate(self, given: dict[str, Any]) -> None:
        self.said = self.model.generate(**given, return_dict_in_generate=True)


def main() -> None:
    model, processor = sightline.load_model("embedded")
    chat = Chat(model, processor, testbed.scene("test", 0).image)
    with sightline.attach(model, "vhr", processor=processor):
        for question in QUESTIONS:
            chat.ask(question)


if __name__ == "__main__":
    main()
