"""What a hub would give: tiny random models of a family with real processors, so that a snippet runs as it is printed."""

from __future__ import annotations

from typing import Any

import tokenizers
import transformers as tf

from . import tiny

MARKS = {
    "<|image_pad|>": tiny.IMAGE,
    "<|video_pad|>": tiny.VIDEO,
    "<|vision_start|>": tiny.IMAGE_START,
    "<|vision_end|>": tiny.IMAGE_END,
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ picture }}{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def stand_in(name: str) -> tuple[Any, Any]:
    """Model and processor, or tokenizer, for the name of a checkpoint on the hub. KeyError for one that has none here."""
    family, processor = HUB[name]
    model = tiny.fresh(family).model
    model.name_or_path = f"tiny/{family}"  # a shipped calibration is of another size
    return model, processor()


def tokenizer(picture: str, marks: dict[str, int], **named: str) -> Any:
    """One token a letter, within the vocabulary of tiny models.

    picture: what stands for one in a prompt. marks: special tokens and their ids. named: what the processor calls some.
    """
    letters = {chr(code): tiny.TEXT[0] + code - 32 for code in range(32, 127)}
    marks = {"<pad>": tiny.PAD, "<s>": tiny.BOS, "</s>": tiny.EOS, "<unk>": 3, **marks}
    taken = {*marks.values(), *letters.values()}
    rest = {f"<{n}>": n for n in range(tiny.VOCAB) if n not in taken}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({**marks, **letters, **rest}, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    core.decoder = tokenizers.decoders.Fuse()
    core.add_special_tokens([tokenizers.AddedToken(one, special=True) for one in marks])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=TEMPLATE.replace("{{ picture }}", picture),
        extra_special_tokens=named,
    )


def _qwen_tokenizer(picture: str = "") -> Any:
    return tokenizer(picture, MARKS, image_token="<|image_pad|>", video_token="<|video_pad|>")


def _llava() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size, crop = {"shortest_edge": 16}, {"height": 16, "width": 16}
    own = _qwen_tokenizer("<|image_pad|>")
    return tf.LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=crop),
        own,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=own.chat_template,
        image_token="<|image_pad|>",
        num_additional_image_tokens=1,
    )


class _NoVideos(tf.Qwen2VLProcessor):
    """A video processor needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


def _qwen2_vl() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = _qwen_tokenizer("<|vision_start|><|image_pad|><|vision_end|>")
    seen = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024)
    return _NoVideos(seen, own, None, chat_template=own.chat_template)


HUB = {
    "llava-hf/llava-1.5-7b-hf": ("llava", _llava),
    "Qwen/Qwen2-VL-7B-Instruct": ("qwen2_vl", _qwen2_vl),
    "Qwen/Qwen3-0.6B": ("qwen3", _qwen_tokenizer),
}
