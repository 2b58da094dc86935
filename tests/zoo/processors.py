"""The processors of model types that people calibrate, around one token a letter, for the tiny models of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as tf

from tests.helpers.hub import tokenizer

SIDE, PATCH = 32, 4  # pixels


class _NoVideos:
    """A video processor needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


def without_videos(kind: type) -> type:
    return type(kind.__name__, (_NoVideos, kind), {})


def _qwen3_vl(config: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = {
        "<|image_pad|>": config.image_token_id,
        "<|video_pad|>": config.video_token_id,
        "<|vision_start|>": config.vision_start_token_id,
        "<|vision_end|>": config.vision_end_token_id,
    }
    own = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", marks)
    seen = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=SIDE**2
    )
    return without_videos(tf.Qwen3VLProcessor)(seen, own, None, chat_template=own.chat_template)


def _glm4v(config: Any) -> Any:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    marks = {
        "<|image|>": config.image_token_id,
        "<|video|>": config.video_token_id,
        "<|begin_of_image|>": config.image_start_token_id,
        "<|end_of_image|>": config.image_end_token_id,
        "<|begin_of_video|>": config.video_start_token_id,
        "<|end_of_video|>": config.video_end_token_id,
    }
    own = tokenizer("<|begin_of_image|><|image|><|end_of_image|>", marks)
    size = {"shortest_edge": 64, "longest_edge": 2 * SIDE**2}  # of all pixels, the two frames of a picture together
    seen = Glm4vImageProcessorPil(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size)
    return without_videos(tf.Glm4vProcessor)(seen, own, None, chat_template=own.chat_template)


def _gemma4(config: Any) -> Any:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "audio_token": "<audio>"}
    named |= {"boa_token": "<boa>", "eoa_token": "<eoa>"}
    marks = {"<image>": config.image_token_id, "<|video|>": config.video_token_id, "<audio>": config.audio_token_id}
    own = tokenizer("<image>", marks | {"<boi>": 240, "<eoi>": 241, "<boa>": 242, "<eoa>": 243}, **named)
    vision = config.vision_config
    seen = Gemma4ImageProcessorPil(
        patch_size=vision.patch_size, pooling_kernel_size=vision.pooling_kernel_size, max_soft_tokens=70
    )
    return without_videos(tf.Gemma4Processor)(None, seen, own, None, chat_template=own.chat_template)


def _gemma3(config: Any) -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    own = tokenizer("<boi>", {"<image>": config.image_token_index, "<boi>": 240, "<eoi>": 241}, **named)
    side = config.vision_config.image_size
    seen = Gemma3ImageProcessorPil(size={"height": side, "width": side})
    tokens = config.mm_tokens_per_image
    return tf.Gemma3Processor(seen, own, image_seq_length=tokens, chat_template=own.chat_template)


def _mistral3(config: Any) -> Any:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    own = tokenizer("[IMG]", {"[IMG]": config.image_token_index, "[IMG_BREAK]": 240, "[IMG_END]": 241})
    side = config.vision_config.image_size
    seen = PixtralImageProcessorPil(patch_size={"height": PATCH, "width": PATCH}, size={"longest_edge": side})
    merge = config.spatial_merge_size
    return PixtralProcessor(seen, own, patch_size=PATCH, spatial_merge_size=merge, chat_template=own.chat_template)


def _llama4(config: Any) -> Any:
    from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    names = ("<|image|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
    marks = {"<|patch|>": config.image_token_index, **{name: 240 + n for n, name in enumerate(names)}}
    own = tokenizer("<|image|>", marks)
    vision = config.vision_config
    seen = Llama4ImageProcessor(size={"height": vision.image_size, "width": vision.image_size}, max_patches=4)
    return Llama4Processor(
        seen, own, patch_size=PATCH, pixel_shuffle_ratio=vision.pixel_shuffle_ratio, chat_template=own.chat_template
    )


def _internvl(config: Any) -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    marks = {"<IMG_CONTEXT>": config.image_token_id, "<img>": 240, "</img>": 241, "<video>": 242}
    own = tokenizer("<IMG_CONTEXT>", marks, **named)
    high, wide = config.vision_config.image_size
    seen = GotOcr2ImageProcessorPil(size={"height": high, "width": wide}, max_patches=2)
    tokens = int((high // PATCH) * (wide // PATCH) * config.downsample_ratio**2)
    return without_videos(tf.InternVLProcessor)(
        seen, own, None, image_seq_length=tokens, chat_template=own.chat_template
    )


PROCESSORS: dict[str, Callable[[Any], Any]] = {
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "glm4v": _glm4v,
    "llama4": _llama4,
    "mistral3": _mistral3,
    "internvl": _internvl,
}
#: those whose processor cannot be imported without torchvision
TORCHVISION = ("llama4", "mistral3")
