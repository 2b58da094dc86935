"""`embedded-smol`: SmolLM2-135M-Instruct, which learned to see through the testbed's tower. Not a real LVLM either.

What ships is what was trained: the tower, the projector and a low-rank adapter of the language model. SmolLM2's own
weights come from elsewhere (`models/loading.py`); the adapter is merged into them on loading, so that the model that
results is a plain `LlavaForConditionalGeneration`.
"""

from __future__ import annotations

import copy
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model import IMAGE_TOKEN, build_processor, build_vision_config

if TYPE_CHECKING:
    import torch

NAME = "sightline/embedded-smol"  # under which its calibration file is found
FILE = "adapter.safetensors"
RESERVED = "<repo_name>"  # a token of SmolLM2 that its chats never use; it becomes the image's
END = "<|im_end|>"

#: SmolLM2's own template, for contents in parts too; a chat with a picture goes without the default system message.
CHAT_TEMPLATE = (
    "{% set chat = namespace(sees=false) %}"
    "{% for message in messages if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{% set chat.sees = true %}{% endfor %}"
    "{% endfor %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' and not chat.sees %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def processor_of(tokenizer: Any) -> Any:
    """A `LlavaProcessor` around SmolLM2's tokenizer, in which `RESERVED` is now called `<image>`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = core["model"]["vocab"]
    if RESERVED in vocabulary:
        vocabulary[IMAGE_TOKEN] = vocabulary.pop(RESERVED)
    for added in core["added_tokens"]:
        if added["content"] == RESERVED:
            added.update(content=IMAGE_TOKEN, special=True)
    seeing = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)),
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token=END,
        unk_token="<|endoftext|>",
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    return build_processor(seeing, CHAT_TEMPLATE)


def build_config(text: Any, image_token: int, **vision: int) -> Any:
    """A `LlavaConfig` of the testbed's tower and the text model `text`; `vision`: sizes of another tower."""
    from transformers import LlavaConfig

    from .data import TOKENS

    text = copy.deepcopy(text)
    if hasattr(text, "quantization_config"):
        del text.quantization_config  # the weights are plain by now
    return LlavaConfig(
        vision_config=build_vision_config(**vision),
        text_config=text,
        image_token_index=image_token,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def merge(language: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a language model with the low-rank products of an adapter added, in float32.

    Args:
        language: state of a `LlamaForCausalLM`.
        adapter: for a weight ``X.weight`` of shape (out, in), ``X.down`` (rank, in) and ``X.up`` (out, rank).
    """
    merged = {name: value.float() for name, value in language.items()}
    for name in (key.removesuffix(".down") for key in adapter if key.endswith(".down")):
        product = adapter[f"{name}.up"].float() @ adapter[f"{name}.down"].float()
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + product
    return merged


def assemble(language: Any, tokenizer: Any, folder: str | Path, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A language model made to see: the LLaVA (eval mode) and its processor, from what `folder` adds to it."""
    import torch
    from safetensors.torch import load_file
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    processor = processor_of(tokenizer)
    trained = load_file(Path(folder) / FILE)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}

    config = build_config(language.config, processor.image_token_id)
    state = {}
    for name, value in merge(language.state_dict(), part("language_model.")).items():
        state["lm_head.weight" if name == "lm_head.weight" else f"model.language_model.{name[6:]}"] = value
    for room in ("vision_tower.", "multi_modal_projector."):
        state |= {f"model.{room}{name}": value.float() for name, value in part(room).items()}
    model = LlavaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype or torch.float32
    )
    end = processor.tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=96,
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    model.name_or_path = NAME
    return model.eval(), processor


def load(language: Any, tokenizer: Any, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """The shipped `embedded-smol` over SmolLM2-135M-Instruct and its tokenizer; `dtype` defaults to float32."""
    with resources.as_file(resources.files(__package__).joinpath("weights-smol")) as folder:
        return assemble(language, tokenizer, folder, dtype)
