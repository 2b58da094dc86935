"""The testbed LVLM itself: configuration, tokenizer, processor, and loading the shipped checkpoint."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IMAGE_TOKEN = "<image>"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", IMAGE_TOKEN)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | upper + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer() -> Any:
    """A Unigram tokenizer with whole words and single characters: every known word is one "▁word" token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    from .text import vocabulary

    words, letters = vocabulary()
    pieces = [(token, 0.0) for token in SPECIAL] + [(w, -5.0) for w in words] + [(c, -20.0) for c in letters]
    core = Tokenizer(Unigram(pieces, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    core.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"), pre_tokenizers.Punctuation("isolated")]
    )
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: Any = None, template: str = CHAT_TEMPLATE) -> Any:
    """A `LlavaProcessor` around a tokenizer (its own) and a Pillow image processor: 96 x 96 pixels, 64 image tokens."""
    from transformers import LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    from .data import PATCH
    from .scenes import SIZE

    images = SiglipImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        resample=3,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
    )
    tokenizer = build_tokenizer() if tokenizer is None else tokenizer
    tokenizer.chat_template = template
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
    )


def build_vision_config(*, hidden: int = 192, layers: int = 4) -> Any:
    """A `SiglipVisionConfig`: a small tower of 4 heads a layer."""
    from transformers import SiglipVisionConfig

    from .data import PATCH
    from .scenes import SIZE

    return SiglipVisionConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )


def build_config(
    vocabulary_size: int, *, hidden: int = 192, layers: int = 8, vision_hidden: int = 192, vision_layers: int = 4
) -> Any:
    """A `LlavaConfig`: the small tower, a two-layer projector, a Llama text model of `layers` x 8 heads."""
    from transformers import LlamaConfig, LlavaConfig

    from .data import TOKENS

    text = LlamaConfig(
        vocab_size=-(-vocabulary_size // 8) * 8,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=SPECIAL.index("<pad>"),
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=build_vision_config(hidden=vision_hidden, layers=vision_layers),
        text_config=text,
        image_token_index=SPECIAL.index(IMAGE_TOKEN),
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def prompt(processor: Any, question: str) -> str:
    """The chat text of one question about one image, up to where the answer begins."""
    from ..common.chat import render, user

    return render(processor, [user(question, pictures=1)])


def load_from(folder: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """Model (eval mode) and processor of a checkpoint folder; `dtype` defaults to float32."""
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return model.eval(), load_processor(folder, LlavaProcessor)


def load_processor(folder: str | Path, kind: Any) -> Any:
    """The processor of a checkpoint folder, with the Pillow image backend whatever else is installed."""
    return kind.from_pretrained(folder, local_files_only=True, backend="pil")


def load(dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """The shipped testbed model and its processor; `dtype` defaults to float32."""
    with resources.as_file(resources.files(__package__).joinpath("weights")) as folder:
        return load_from(folder, dtype, device)
