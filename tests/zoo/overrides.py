"""What the names of a configuration's fields do not tell the shrinker, by the model type of the configuration (or part).

Under "" stands what a type's defaults lack to be valid at all.
"""

from __future__ import annotations

from typing import Any

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BOTH = {"full_attention": ROPE, "sliding_attention": ROPE}
SECTIONS = {"rope_parameters": {"mrope_section": [4, 2, 2]}}
LETTERS = {f"IMGIMG{''.join(chr(65 + int(digit)) for digit in str(i))}Z": 210 + i for i in range(16)}
CODES = {"<image>": 250, **LETTERS}
TOKENS = {"<image>": 250, "<|extra_200|>": 209, **{f"<|visual token {i:06}|>": 210 + i for i in range(16)}}

#: encoders of BERT's kind, which are decoders where their configuration says so
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {"16": 4}},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dbrx": {"attn_config": {"model_type": "", "clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 10000.0}},
    **{name: {"is_decoder": True} for name in ENCODERS},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "blenderbot": {"decoder_layers": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 128},
    "inkling_text": {"swa_num_attention_heads": 4},
    "inkling2_text": {"swa_num_attention_heads": 4},
    "chameleon": {"": {"vocabulary_map": CODES}, "vocabulary_map": CODES},
    "cohere_compass_text": {"rope_parameters": BOTH},
    "emu3": {"": {"vocabulary_map": TOKENS}, "vocabulary_map": TOKENS},
    "emu3_vqgan": {"codebook_size": 16, "hidden_size": 256, "base_channels": 64},
    "chameleon_vqgan": {"num_embeddings": 16},
    "dots3_note_text": {"num_key_value_heads": 8, "head_dim": 32, "swa_head_dim": 32},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [64, 64]},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [64, 64]},
    "deepseek_ocr2_text": {
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "diffusion_gemma": {"": {"vision_config": {}}},
    "gemma4": {"": {"vision_config": {}}},
    "gemma4_unified": {"": {"vision_config": {}}},
    "ernie4_5_vl_moe_text": {"rope_parameters": {"mrope_section": [1, 1, 2]}},
    "glm4v_text": {"rope_parameters": {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    "glm46v_text": {"rope_parameters": {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    "glm4v_moe_text": {"head_dim": 16, "rope_parameters": {"mrope_section": [2, 1, 1]}},
    "glm_ocr_text": {"head_dim": 16, **SECTIONS},
    "llama4_vision_model": {"intermediate_size": 256},
    "muse_glimmer": {"out_hidden_size": 256},
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "vipllava": {"vision_feature_layer": [-2, -1, 0]},
    "granite_docling_vision": {"use_fine_route": False},
    "mistral4": {"head_dim": 32},
    "moshi": {"sliding_window": 10},  # longer than the proof's prompt: its mask has none, its cache has
    "mllama_text_model": {"cross_attention_layers": [1]},
    "mllama_vision_model": {"vision_output_dim": 192},
    "molmo2": {"image_patch_id": 250},
    "molmo2_vision": {"num_position_embeddings": 16},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "helium": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "qwen2_vl_text": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "qwen2_5_vl_text": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "qwen2_5_omni_text": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "paddleocr_vl_text": {"rope_parameters": {"mrope_section": [4, 2, 2]}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 247, "vision_end_token_id": 246},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 247, "vision_end_token_id": 246},
    "step3p5": {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2},
    "granitemoe": {"attention_multiplier": 0.25},
    "granitemoeshared": {"attention_multiplier": 0.25},
    "granite_swa": {"attention_multiplier": 0.25},
    "granitemoe_swa": {"attention_multiplier": 0.25},
    "granite": {"attention_multiplier": 0.25},
    "granite4_vision_text": {"attention_multiplier": 0.25},
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1, 2, 3]},
    "hunyuan_vl_text": {"head_dim": 16, **SECTIONS},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
}
