"""A caption before and after: `python caption.py [MODEL] [PICTURE]`; without any, the embedded model and a generated scene."""

from __future__ import annotations

import sys
from typing import Any

import sightline
from PIL import Image
from sightline import testbed


def caption(model: Any, processor: Any, image: Image.Image) -> str:
    words = [{"type": "image", "image": image}, {"type": "text", "text": "Please describe this image in detail."}]
    turn = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": words}], **turn).to(model.device, model.dtype)
    ids = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    return str(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main(name: str = "embedded", picture: str | None = None) -> None:
    model, processor = sightline.load_model(name)
    image = testbed.scene("test", 0).image if picture is None else Image.open(picture).convert("RGB")
    print("plain:", caption(model, processor, image))
    with sightline.attach(model, "vhr", processor=processor):
        print("vhr:  ", caption(model, processor, image))


if __name__ == "__main__":
    main(*sys.argv[1:])
