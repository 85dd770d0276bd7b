"""Tiny random models of every kind of cache layer, built offline in milliseconds."""

from __future__ import annotations

import functools

import torch
import transformers as tf

VOCAB = 61
# Far inside the vocabulary: image tokens of the vision-language model are 50 and above.
TEXT_VOCAB = 48

_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
_GQA = _BASE | {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}


def _llama():
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_GQA))


def _qwen2():
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**_GQA))


def _qwen3():
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**_GQA))


def _mistral_sliding():
    return tf.MistralForCausalLM(tf.MistralConfig(**_GQA, sliding_window=12))


def _gemma2():
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    return tf.Gemma2ForCausalLM(
        tf.Gemma2Config(**_GQA, sliding_window=12, layer_types=types, query_pre_attn_scalar=8)
    )


def _gemma3():
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**_GQA, sliding_window=12, layer_types=types, query_pre_attn_scalar=8)
    )


def _gpt_neox():
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_BASE))


def _gpt2():
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=512,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
            initializer_range=0.3,
        )
    )


def _llama_scaled():
    # YaRN scales its cosines: a factor of the scores that pages must have too.
    rope = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 10000.0,
    }
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_GQA, rope_parameters=rope))


def _llama_dynamic():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_GQA, rope_parameters=rope))


def _phi():
    return tf.PhiForCausalLM(tf.PhiConfig(**_BASE | {"num_key_value_heads": 2}))


def _phi3_longrope():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    }
    config = _BASE | {"num_key_value_heads": 2, "original_max_position_embeddings": 64}
    return tf.Phi3ForCausalLM(tf.Phi3Config(**config, rope_parameters=rope))


def _cohere():
    return tf.CohereForCausalLM(tf.CohereConfig(**_BASE | {"num_key_value_heads": 2}))


def _cohere2():
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    config = _BASE | {"num_key_value_heads": 2, "sliding_window": 12, "layer_types": types}
    return tf.Cohere2ForCausalLM(tf.Cohere2Config(**config))


def _glm():
    return tf.GlmForCausalLM(tf.GlmConfig(**_GQA))


def _smollm3():
    return tf.SmolLM3ForCausalLM(
        tf.SmolLM3Config(**_BASE | {"num_key_value_heads": 2}, no_rope_layers=[1, 1, 0])
    )


def _gptj():
    return tf.GPTJForCausalLM(
        tf.GPTJConfig(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=3,
            n_head=4,
            rotary_dim=4,
            n_positions=512,
            bos_token_id=1,
            eos_token_id=None,
        )
    )


def _bloom():
    return tf.BloomForCausalLM(tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4))


def _gpt_oss():
    config = _GQA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12}
    return tf.GptOssForCausalLM(tf.GptOssConfig(**config))


def _deepseek_v3():
    config = _BASE | {
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**config))


def _qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2}
    text = _GQA | {"rope_parameters": rope}
    return tf.Qwen2VLForConditionalGeneration(tf.Qwen2VLConfig(text_config=text, vision_config=vision))


def _qwen3_next():
    types = ["linear_attention", "full_attention", "linear_attention"]
    return tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(
            **_GQA,
            layer_types=types,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_conv_kernel_dim=4,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            decoder_sparse_step=1,
        )
    )


def _t5():
    return tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=VOCAB,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
            initializer_factor=3.0,
        )
    )


def _bart():
    return tf.BartForConditionalGeneration(
        tf.BartConfig(
            vocab_size=VOCAB,
            d_model=32,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=256,
            decoder_start_token_id=2,
            bos_token_id=1,
            eos_token_id=None,
            forced_eos_token_id=None,
            pad_token_id=0,
            init_std=0.3,
        )
    )


def _llava():
    vision = tf.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        projection_dim=32,
    )
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(
            vision_config=vision,
            text_config=tf.LlamaConfig(**_GQA),
            image_token_id=50,
            vision_feature_layer=-1,
            pad_token_id=0,
        )
    )


_BUILDERS = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "mistral_sliding": _mistral_sliding,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "qwen3_next": _qwen3_next,
    "t5": _t5,
    "bart": _bart,
    "llava": _llava,
    "llama_scaled": _llama_scaled,
    "llama_dynamic": _llama_dynamic,
    "phi": _phi,
    "phi3_longrope": _phi3_longrope,
    "cohere": _cohere,
    "cohere2": _cohere2,
    "glm": _glm,
    "smollm3": _smollm3,
    "gptj": _gptj,
    "bloom": _bloom,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
    "qwen2_vl": _qwen2_vl,
}
DECODERS = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral_sliding",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "gpt2",
    "qwen3_next",
]
# Layers with a recurrence have no batch operations or steps back in transformers itself.
RECURRENT = ["qwen3_next"]
ENCODER_DECODERS = ["t5", "bart"]


@functools.cache
def build(name: str, seed: int = 0, attention: str | None = None):
    """The model, in evaluation mode, with weights from the seed."""
    torch.manual_seed(seed)
    model = _BUILDERS[name]().eval()
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def prompt(num_tokens: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """(rows, num_tokens) ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, TEXT_VOCAB, (rows, num_tokens), generator=generator)


def padded_prompt() -> dict[str, torch.Tensor]:
    """Three rows of 20 ids, the first and the last padded on the left, with their mask."""
    ids = prompt(20, rows=3)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    mask[2, :2] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
