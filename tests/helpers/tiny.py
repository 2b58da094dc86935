"""Tiny random models of every supported family, and valid inputs for them built by hand.

No processor, no tokenizer, no network: a :class:`TinyCase` knows how its family lays image placeholders out, so the
tests of the engine can ask for a padded batch and for each of its rows alone. Weights are seeded and scaled so that
attention is far from uniform; with the default initialisation (0.02) every edit of attention would vanish in the noise.

    case = tiny.get("qwen2_vl")                        # shared by the process: do not change its model
    case = tiny.fresh("qwen2_vl")                      # a deep copy: do with it what you like
    batch = case.inputs(3, lengths=(7, 3, 5))          # left-padded, text tokens after the image: 7, 3 and 5
    alone = case.row(batch, 1)                         # the second row without its padding

RoPE sees only differences of positions, so moving a whole row changes nothing here: tests of position ids have to look
at the ids themselves, not at logits.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as tf
from torch import nn

Inputs = dict[str, torch.Tensor]

VOCAB = 256
PAD, BOS, EOS = 0, 1, 2
TEXT = (10, 230)  # ids of ordinary text tokens
IMAGE, VIDEO, IMAGE_START, IMAGE_END, TILE = 250, 251, 252, 253, 254  # ids that only a prompt holds
LAYERS, HIDDEN, HEADS = 4, 64, 8


@dataclass(frozen=True)
class Pictures:
    """How one family encodes images.

    ``draw`` makes the tensors of a flat list of images; ``counts`` reads back from them how many placeholders each
    image needs; ``before`` and ``after`` wrap every image. Families that store images by row set ``per_row``; families
    whose images open the prompt, with no text before them, set ``leads``.
    """

    draw: Callable[[int, torch.Generator], Inputs]
    counts: Callable[[Inputs], list[int]]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    per_row: bool = False
    max_per_row: int = 3
    leads: bool = False


@dataclass(frozen=True)
class TinyCase:
    """A tiny model of one family, with what is needed to feed it.

    ``token_types`` names the tensor that marks image tokens, or is "prefix" for a bidirectional prompt. The flags say
    where plain transformers itself falls short, each with its reason; with transformers 5.23 every family passes.
    """

    name: str
    model: Any
    pictures: Pictures | None = None
    token_types: str | None = None
    padding_exact: bool = True
    padding_reason: str = ""
    static_cache: bool = True
    static_reason: str = ""
    beams: bool = True
    beams_reason: str = ""
    uneven: bool = True  # whether rows of a batch may differ in how many images they have, and may have none
    uneven_reason: str = ""

    @property
    def has_images(self) -> bool:
        """Whether the family takes images at all."""
        return self.pictures is not None

    @property
    def image_token_id(self) -> int | None:
        """The id of the image placeholder, as the model's own config names it."""
        return self.model.config.image_token_id if self.has_images else None

    @property
    def max_images(self) -> int:
        """The most images one row may hold."""
        return self.pictures.max_per_row if self.pictures else 0

    def inputs(
        self,
        batch: int = 1,
        *,
        lengths: Sequence[int] | None = None,
        images_per_row: int | Sequence[int] = 1,
        seed: int = 0,
    ) -> Inputs:
        """Random prompts: some text, the images, then ``lengths[i]`` text tokens; padded on the left.

        ``lengths`` counts the text tokens after the last image (default: a different number for every row).
        ``images_per_row`` may differ between rows, and may be 0.
        """
        rng = torch.Generator().manual_seed(seed)
        lengths = [7 + 4 * (-i % 3) for i in range(batch)] if lengths is None else list(lengths)
        images = [images_per_row] * batch if isinstance(images_per_row, int) else list(images_per_row)
        if len(lengths) != batch or len(images) != batch:
            raise ValueError(f"{batch} rows, but {len(lengths)} lengths and {len(images)} image counts")
        if not self.has_images:
            images = [0] * batch
        elif max(images) > self.max_images:
            raise ValueError(f"{self.name} takes at most {self.max_images} images per row")

        tensors: Inputs = {}
        counts: list[int] = []
        if self.pictures and sum(images):
            tensors = self.pictures.draw(sum(images), rng)
            if "batch_num_images" in tensors:  # this family spends fewer placeholders on an image that has company
                tensors["batch_num_images"] = torch.tensor([n for n in images if n])
            counts = self.pictures.counts(tensors)
        rows: list[list[int]] = []
        at = 0
        for length, n in zip(lengths, images, strict=True):
            rows.append(self._prompt(counts[at : at + n], length, rng))
            at += n
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = {"input_ids": ids, "attention_mask": mask}
        if self.pictures and self.pictures.per_row and tensors:
            tensors = {key: _by_row(value, images) for key, value in tensors.items()}
        out.update(tensors)
        if self.token_types == "prefix":  # 0: the bidirectional prefix, which is the whole prompt when generating
            out["token_type_ids"] = torch.zeros_like(ids)
        elif self.token_types:
            out[self.token_types] = ids.eq(IMAGE).long()
        if "aspect_ratio_mask" in out:  # Mllama: a token sees the tiles of every image that begins at or before it
            begun = ids.eq(IMAGE).cumsum(1)[:, :, None] > torch.arange(max(images))
            out["cross_attention_mask"] = (begun & mask[..., None].bool())[..., None] * out["aspect_ratio_mask"][
                :, None
            ]
        return out

    def _prompt(self, counts: list[int], length: int, rng: torch.Generator) -> list[int]:
        """One row of ids: start, text, each image in its wrapping with a text token between images, text."""

        def text(n: int) -> list[int]:
            return torch.randint(*TEXT, (n,), generator=rng).tolist()

        pics = self.pictures
        row = [] if pics and pics.leads else [BOS, *text(2 + int(torch.randint(0, 3, (), generator=rng)))]
        for i, count in enumerate(counts):
            assert pics is not None
            row += text(1) if i and not pics.leads else []
            row += [*pics.before, *[IMAGE] * count, *pics.after]
        return row + ([BOS] if pics and pics.leads else []) + text(length)

    def row(self, inputs: Inputs, i: int) -> Inputs:
        """Row ``i`` of a batch alone, as a batch of one without padding and with its own images only."""
        keep = inputs["attention_mask"][i].bool()
        out: Inputs = {}
        for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask"):
            if key in inputs:
                out[key] = inputs[key][i : i + 1, keep]
        tensors = {key: value for key, value in inputs.items() if key not in out}
        if not tensors or self.pictures is None:
            return out
        if self.pictures.per_row:
            used = inputs["pixel_values"][i].flatten(1).ne(0).any(1)
            return {**out, **({key: value[i : i + 1, used] for key, value in tensors.items()} if used.any() else {})}
        counts = self.pictures.counts(tensors)
        spent = inputs["input_ids"].eq(IMAGE).sum(1).tolist()
        ends = [sum(counts[:k]) for k in range(len(counts) + 1)]
        first, last = ends.index(sum(spent[:i])), ends.index(sum(spent[: i + 1]))
        if first == last:
            return out
        return {**out, **_pick(tensors, first, last)}


def _by_row(value: torch.Tensor, images: list[int]) -> torch.Tensor:
    """[images, ...] to [rows, most images, ...]; a missing image is all zeros, which is how these families say so."""
    out = value.new_zeros(len(images), max(images), *value.shape[1:])
    at = 0
    for i, n in enumerate(images):
        out[i, :n] = value[at : at + n]
        at += n
    return out


def _pick(tensors: Inputs, first: int, last: int) -> Inputs:
    """The tensors of the images first..last-1 of a flat list."""
    out = dict(tensors)
    if "image_grid_thw" in tensors:  # patches of all images lie in one long row
        sizes = tensors["image_grid_thw"].prod(1).tolist()
        out["pixel_values"] = tensors["pixel_values"][sum(sizes[:first]) : sum(sizes[:last])]
        out["image_grid_thw"] = tensors["image_grid_thw"][first:last]
        return out
    if "batch_num_images" in tensors:
        out["batch_num_images"] = torch.tensor([last - first])
    for key in ("pixel_values", "image_sizes", "qformer_input_ids", "qformer_attention_mask"):
        if key in tensors:
            out[key] = tensors[key][first:last]
    return out


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Fill every weight from one seeded generator, at a scale that makes attention sharp and keeps activations sane.

    Returns the head where its weights are its own, else None.
    """
    rng = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = head is not None and id(head.weight) in embeddings
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=rng)
            if (table := embeddings.get(id(parameter))) is not None:
                # Gemma multiplies its embeddings by sqrt(hidden); left alone they would drown what attention adds.
                scale = float(getattr(table, "scalar_embed_scale", 1.0))
                parameter.copy_(noise / max(scale, 5.0 if tied else 1.0))
            elif parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(1.5 * noise / math.sqrt(parameter[0].numel()))
    return None if tied else head


def _finish(model: tf.PreTrainedModel, seed: int = 0, attention: str = "sdpa") -> tf.PreTrainedModel:
    """Weights, evaluation mode, the attention implementation, and a generation config that never stops early."""
    head = randomise(model, seed)
    if head is not None:
        # Never the best: a generated placeholder or end token would make every test depend on luck.
        head.weight.data[[PAD, BOS, EOS, IMAGE, VIDEO, IMAGE_START, IMAGE_END, TILE]] = 0.0
    model.float().eval().requires_grad_(False)
    model.set_attn_implementation(attention)
    for one in {model, getattr(model, "language_model", model)}:  # a Q-Former's language model generates by itself
        one.generation_config = tf.GenerationConfig(
            pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None, use_cache=True
        )
    return model


def attention(layer: Any) -> Any:
    """The attention of a block, be it to the sequence or across to an image."""
    return layer.self_attn if hasattr(layer, "self_attn") else layer.cross_attn


def speaker(model: Any, inputs: Inputs) -> Any:
    """What answers a prompt: the model, or where that takes no prompt without pictures, the language model inside."""
    return model.language_model if hasattr(model, "query_tokens") and "pixel_values" not in inputs else model


def decoder(model: Any) -> Any:
    """The text decoder, whose `layers` are its blocks."""
    inner = model.get_decoder()
    return inner if hasattr(inner, "layers") else inner.get_decoder()


def _text(**more: Any) -> dict[str, Any]:
    """What all text decoders share."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        **more,
    }


def _tower(**more: Any) -> dict[str, Any]:
    """What all CLIP- and SigLIP-like vision towers share."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        **more,
    }


# --- images ----------------------------------------------------------------------------------------------------------


def _square(side: int, tokens: int, *, mask: bool = False, **more: Any) -> Pictures:
    """Images of one size, each worth the same number of placeholders."""

    def draw(n: int, rng: torch.Generator) -> Inputs:
        out = {"pixel_values": torch.randn(n, 3, side, side, generator=rng)}
        if mask:
            out["pixel_attention_mask"] = torch.ones(n, side, side, dtype=torch.long)
        return out

    def counts(tensors: Inputs) -> list[int]:
        return [tokens] * tensors["pixel_values"].shape[0]

    return Pictures(draw, counts, **more)


def _grids(patch: int, **more: Any) -> Pictures:
    """Images as rows of patches with a grid per image, three sizes in turn; 2 x 2 patches make one placeholder."""

    def draw(n: int, rng: torch.Generator) -> Inputs:
        grid = torch.tensor([[(1, 4, 6), (1, 4, 4), (1, 6, 4)][i % 3] for i in range(n)])
        patches = int(grid.prod(1).sum())
        return {"pixel_values": torch.randn(patches, 3 * 2 * patch * patch, generator=rng), "image_grid_thw": grid}

    def counts(tensors: Inputs) -> list[int]:
        return (tensors["image_grid_thw"].prod(1) // 4).tolist()

    return Pictures(draw, counts, before=(IMAGE_START,), after=(IMAGE_END,), **more)


def _asked(side: int, tokens: int) -> Pictures:
    """Images of one size for a Q-Former that reads a question with each of them, padded on the right."""

    def draw(n: int, rng: torch.Generator) -> Inputs:
        mask = torch.tensor([[1] * (6 - i % 3) + [0] * (i % 3) for i in range(n)], dtype=torch.long).view(n, 6)
        ids = torch.randint(*TEXT, (n, 6), generator=rng) * mask
        return {
            "pixel_values": torch.randn(n, 3, side, side, generator=rng),
            "qformer_input_ids": ids,
            "qformer_attention_mask": mask,
        }

    def counts(tensors: Inputs) -> list[int]:
        return [tokens] * tensors["pixel_values"].shape[0]

    return Pictures(draw, counts, leads=True)


PINPOINTS = [[8, 16], [16, 8], [16, 16]]


def _anyres(*, company: bool, **more: Any) -> Pictures:
    """Images in tiles of 8 pixels (2 x 2 placeholders each) around one overview, with a newline after every line.

    ``company``: the family (LLaVA-OneVision) does not tile an image that shares its row with others.
    """
    shapes = [(8, 16), (16, 16), (16, 8), (12, 16)]

    def draw(n: int, rng: torch.Generator) -> Inputs:
        sizes = torch.tensor([shapes[i % len(shapes)] for i in range(n)])
        out = {"pixel_values": torch.randn(n, 5, 3, 8, 8, generator=rng), "image_sizes": sizes}
        if company:
            out["batch_num_images"] = torch.ones(n, dtype=torch.long)
        return out

    def counts(tensors: Inputs) -> list[int]:
        sizes: list[list[int]] = tensors["image_sizes"].tolist()
        alone = [True] * len(sizes)
        if company:
            alone = [n == 1 for n in tensors["batch_num_images"].tolist() for _ in range(n)]
        out = []
        for (high, wide), tiled in zip(sizes, alone, strict=True):
            if not tiled:
                out.append(4 + 1)
                continue
            rows, columns = (4 if high > 8 else 2), (4 if wide > 8 else 2)
            if high / wide < rows / columns:  # the picture was padded above and below; these lines are cut off again
                rows -= 2 * ((rows - round(high * columns / wide)) // 2)
            out.append(4 + rows * (columns + 1))
        return out

    return Pictures(draw, counts, **more)


# --- families --------------------------------------------------------------------------------------------------------


def _llava(name: str, kv_heads: int) -> TinyCase:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**_tower(projection_dim=32)),
        text_config=tf.LlamaConfig(**_text(num_key_value_heads=kv_heads)),
        image_token_index=IMAGE,
        image_seq_length=16,
    )
    return TinyCase(name, _finish(tf.LlavaForConditionalGeneration(config)), _square(16, 16))


def _llava_next() -> TinyCase:
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**_tower(image_size=8, projection_dim=32)),
        text_config=tf.MistralConfig(**_text(sliding_window=None)),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=4,
    )
    return TinyCase("llava_next", _finish(tf.LlavaNextForConditionalGeneration(config)), _anyres(company=False))


def _llava_onevision() -> TinyCase:
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**_tower(image_size=8, vision_use_head=False)),
        text_config=tf.Qwen2Config(**_text()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    model = _finish(tf.LlavaOnevisionForConditionalGeneration(config))
    return TinyCase("llava_onevision", model, _anyres(company=True))


_QWEN_IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": IMAGE_START,
    "vision_end_token_id": IMAGE_END,
}


def _mrope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **more}


def _qwen2_vl() -> TinyCase:
    config = tf.Qwen2VLConfig(
        text_config=_text(rope_parameters=_mrope([2, 1, 1])),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": HIDDEN,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        **_QWEN_IDS,
    )
    model = _finish(tf.Qwen2VLForConditionalGeneration(config))
    return TinyCase("qwen2_vl", model, _grids(4), token_types="mm_token_type_ids")


def _qwen2_5_vl() -> TinyCase:
    config = tf.Qwen2_5_VLConfig(
        text_config=_text(num_key_value_heads=4, rope_parameters=_mrope([2, 1, 1])),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "out_hidden_size": HIDDEN,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        **_QWEN_IDS,
    )
    model = _finish(tf.Qwen2_5_VLForConditionalGeneration(config))
    return TinyCase("qwen2_5_vl", model, _grids(4), token_types="mm_token_type_ids")


def _qwen3_vl() -> TinyCase:
    config = tf.Qwen3VLConfig(
        text_config=_text(head_dim=16, rope_parameters=_mrope([4, 2, 2], mrope_interleaved=True)),
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "out_hidden_size": HIDDEN,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        **_QWEN_IDS,
    )
    model = _finish(tf.Qwen3VLForConditionalGeneration(config))
    return TinyCase("qwen3_vl", model, _grids(4), token_types="mm_token_type_ids")


def _internvl() -> TinyCase:
    config = tf.InternVLConfig(
        vision_config=_tower(),
        text_config=tf.Qwen2Config(**_text(num_key_value_heads=4)),
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    pictures = _square(16, 4, before=(IMAGE_START,), after=(IMAGE_END,))
    return TinyCase("internvl", _finish(tf.InternVLForConditionalGeneration(config)), pictures)


def _pad() -> dict[str, Any]:
    """Idefics3 and SmolVLM keep a pad id of their own, beside the text decoder's."""
    return {"pad_token_id": PAD}


def _idefics3() -> TinyCase:
    config = tf.Idefics3Config(
        vision_config=_tower(), text_config=tf.LlamaConfig(**_text()), image_token_id=IMAGE, **_pad()
    )
    pictures = _square(16, 4, mask=True, before=(IMAGE_START, TILE), after=(IMAGE_START,), per_row=True)
    return TinyCase("idefics3", _finish(tf.Idefics3ForConditionalGeneration(config)), pictures)


def _smolvlm() -> TinyCase:
    config = tf.SmolVLMConfig(
        vision_config=_tower(),
        text_config=tf.LlamaConfig(**_text(num_key_value_heads=4)),
        image_token_id=IMAGE,
        **_pad(),
    )
    pictures = _square(16, 4, mask=True, before=(IMAGE_START, TILE), after=(IMAGE_START,), per_row=True)
    return TinyCase("smolvlm", _finish(tf.SmolVLMForConditionalGeneration(config)), pictures)


def _paligemma() -> TinyCase:
    config = tf.PaliGemmaConfig(
        vision_config=tf.SiglipVisionConfig(**_tower(vision_use_head=False)),
        text_config=tf.GemmaConfig(**_text(num_key_value_heads=1, head_dim=16)),
        image_token_index=IMAGE,
        vocab_size=VOCAB,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        tie_word_embeddings=False,
    )
    model = _finish(tf.PaliGemmaForConditionalGeneration(config))
    return TinyCase("paligemma", model, _square(16, 16, leads=True), token_types="prefix")


def _gemma3_text_config(window: int) -> tf.Gemma3TextConfig:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    more = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": window, "layer_types": kinds}
    return tf.Gemma3TextConfig(**_text(num_key_value_heads=4, **more))


def _gemma3() -> TinyCase:
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**_tower(vision_use_head=False)),
        text_config=_gemma3_text_config(12),
        mm_tokens_per_image=4,
        boi_token_index=IMAGE_START,
        eoi_token_index=IMAGE_END,
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    model = _finish(tf.Gemma3ForConditionalGeneration(config))
    return TinyCase(
        "gemma3",
        model,
        _square(16, 4, before=(IMAGE_START,), after=(IMAGE_END,)),
        token_types="token_type_ids",
    )


QUERIES = 5


def _qformer(**more: Any) -> dict[str, Any]:
    """What both Q-Formers share."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {"vocab_size": VOCAB, **size, "encoder_hidden_size": 32, **more}


def _instructblip() -> TinyCase:
    config = tf.InstructBlipConfig(
        vision_config=_tower(),
        qformer_config=_qformer(),
        text_config=tf.LlamaConfig(**_text()),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    model = _finish(tf.InstructBlipForConditionalGeneration(config))
    return TinyCase("instructblip", model, _asked(16, QUERIES))


def _blip_2() -> TinyCase:
    text = tf.OPTConfig(**_text(ffn_dim=96, word_embed_proj_dim=HIDDEN))
    config = tf.Blip2Config(
        vision_config=_tower(),
        qformer_config=_qformer(),
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    model = _finish(tf.Blip2ForConditionalGeneration(config))
    return TinyCase("blip_2", model, _square(16, QUERIES, leads=True))


def _tiled() -> Pictures:
    """Images of one tile or two, one below the other or side by side; the sequence holds a mark for each."""

    def draw(n: int, rng: torch.Generator) -> Inputs:
        ratios = torch.tensor([[1, 2, 3][i % 3] for i in range(n)])
        mask = torch.stack([torch.ones_like(ratios), (ratios > 1).long()], dim=1)
        pixels = torch.randn(n, 2, 3, 8, 8, generator=rng) * mask[:, :, None, None, None]
        return {"pixel_values": pixels, "aspect_ratio_ids": ratios, "aspect_ratio_mask": mask}

    def counts(tensors: Inputs) -> list[int]:
        return [1] * len(tensors["pixel_values"])

    return Pictures(draw, counts, per_row=True)


ACROSS = 4  # behind all layers that tests name


def _mllama() -> TinyCase:
    config = tf.MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "attention_heads": 4,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "image_size": 8,
            "patch_size": 4,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
        },
        text_config=_text(
            num_hidden_layers=LAYERS + 3,
            cross_attention_layers=[ACROSS],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        image_token_index=IMAGE,
    )
    model = _finish(tf.MllamaForConditionalGeneration(config))
    layer = decoder(model).layers[ACROSS]
    for gate in (layer.cross_attn_attn_gate, layer.cross_attn_mlp_gate):  # shut in a new model
        gate.fill_(1.0)
    reason = "Mllama's tokens that see no image attend to every tile there is, those of other rows' images included"
    return TinyCase("mllama", model, _tiled(), uneven=False, uneven_reason=reason)


def _causal(name: str, config: Any) -> TinyCase:
    return TinyCase(name, _finish(tf.AutoModelForCausalLM.from_config(config)))


FAMILIES: dict[str, Callable[[], TinyCase]] = {
    "llava": lambda: _llava("llava", HEADS),
    "llava_gqa": lambda: _llava("llava_gqa", 2),
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "instructblip": _instructblip,
    "blip_2": _blip_2,
    "mllama": _mllama,
    "llama": lambda: _causal("llama", tf.LlamaConfig(**_text(num_key_value_heads=HEADS, tie_word_embeddings=True))),
    "qwen2": lambda: _causal("qwen2", tf.Qwen2Config(**_text())),
    "qwen3": lambda: _causal("qwen3", tf.Qwen3Config(**_text(num_key_value_heads=4, head_dim=16))),
    "mistral": lambda: _causal("mistral", tf.MistralConfig(**_text(sliding_window=None))),
    "mistral_sliding": lambda: _causal("mistral_sliding", tf.MistralConfig(**_text(sliding_window=6))),
    "gemma3_text": lambda: _causal("gemma3_text", _gemma3_text_config(6)),
}


# --- models the engine must refuse -----------------------------------------------------------------------------------


def _t5() -> tf.PreTrainedModel:
    more: dict[str, Any] = {"pad_token_id": PAD, "decoder_start_token_id": PAD}
    config = tf.T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, **more)
    return _finish(tf.T5ForConditionalGeneration(config))


def _instructblip_t5() -> tf.PreTrainedModel:
    more: dict[str, Any] = {"pad_token_id": PAD, "decoder_start_token_id": PAD}
    config = tf.InstructBlipConfig(
        vision_config=_tower(num_hidden_layers=1),
        qformer_config=_qformer(),
        text_config=tf.T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, **more),
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    return _finish(tf.InstructBlipForConditionalGeneration(config))


REFUSED: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "t5": _t5,  # encoder-decoder
    "instructblip": _instructblip_t5,  # an encoder-decoder as language model
}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: these models are so small that threads only cost, forty-fold on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def get(name: str) -> TinyCase:
    """The case of a family, built once per process. Whoever changes its model takes :func:`fresh`."""
    with torch.random.fork_rng(devices=[]):  # some parameters keep their initialisation, which must not vary
        torch.manual_seed(0)
        return FAMILIES[name]()


def fresh(name: str) -> TinyCase:
    """A case whose model is a deep copy, config included (the attention implementation lives in the config)."""
    case = get(name)
    return replace(case, model=copy.deepcopy(case.model))


@functools.cache
def refused(name: str) -> tf.PreTrainedModel:
    """A model that the engine must refuse, built once per process."""
    return REFUSED[name]()


def names(*, images: bool | None = None) -> list[str]:
    """The names of the families, all of them or only those with or without images."""
    text_only = {"llama", "qwen2", "qwen3", "mistral", "mistral_sliding", "gemma3_text"}
    return [name for name in FAMILIES if images is None or images == (name not in text_only)]
