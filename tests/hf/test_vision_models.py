"""Vision-language models of others, tiny and random: images and text through the tiered cache."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers as tf

import stratakv
from stratakv.hf.library import cache_kwargs

pytestmark = pytest.mark.hf

VOCAB, IMAGE = 61, 50
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


def _llava():
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**_TOWER, projection_dim=32),
        text_config=tf.LlamaConfig(**_TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        pad_token_id=0,
    )
    return tf.LlavaForConditionalGeneration(config), 16, {"pixel_values": torch.randn(2, 3, 16, 16)}


def _idefics3(kind="Idefics3"):
    vision = getattr(tf, f"{kind}VisionConfig")(**_TOWER)
    config = getattr(tf, f"{kind}Config")(
        vision_config=vision, text_config=tf.LlamaConfig(**_TEXT), image_token_id=IMAGE, scale_factor=2
    )
    model = getattr(tf, f"{kind}ForConditionalGeneration")(config)
    return model, 4, {"pixel_values": torch.randn(1, 2, 3, 16, 16)}


def _internvl():
    vision = tf.InternVLVisionConfig(**(_TOWER | {"image_size": [16, 16], "patch_size": [4, 4]}))
    config = tf.InternVLConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**_TEXT), image_token_id=IMAGE, downsample_ratio=0.5
    )
    return tf.InternVLForConditionalGeneration(config), 4, {"pixel_values": torch.randn(2, 3, 16, 16)}


def _qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 4}
    config = tf.Qwen2VLConfig(
        text_config=_TEXT | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=51,
        vision_start_token_id=52,
        vision_end_token_id=53,
    )
    extra = {"pixel_values": torch.randn(32, 3 * 2 * 16), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    return tf.Qwen2VLForConditionalGeneration(config), 4, extra


def _gemma3():
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    text = tf.Gemma3TextConfig(**_TEXT, sliding_window=24, layer_types=types, query_pre_attn_scalar=8)
    config = tf.Gemma3Config(
        text_config=text,
        vision_config=tf.SiglipVisionConfig(**_TOWER, vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_id=IMAGE,
        boi_token_id=52,
        eoi_token_id=53,
    )
    return tf.Gemma3ForConditionalGeneration(config), 4, {"pixel_values": torch.randn(2, 3, 16, 16)}


def _paligemma():
    config = tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**_TEXT),
        vision_config=tf.SiglipVisionConfig(**_TOWER, vision_use_head=False),
        image_token_id=IMAGE,
        projection_dim=32,
    )
    return tf.PaliGemmaForConditionalGeneration(config), 16, {"pixel_values": torch.randn(2, 3, 16, 16)}


BUILDERS = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": lambda: _idefics3("SmolVLM"),
    "internvl": _internvl,
    "qwen2_vl": _qwen2_vl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
}
# What cannot be attached, and where that is said.
REFUSED = {"qwen2_vl": "multimodal positions in several dimensions", "paligemma": "go up by one"}


@functools.cache
def build(name):
    """A model, and a prompt of text and two images as keyword arguments."""
    torch.manual_seed(0)
    model, per_image, extra = BUILDERS[name]()
    words = torch.randint(3, 48, (1, 23), generator=torch.Generator().manual_seed(1))
    image = torch.full((1, per_image), IMAGE)
    if name == "qwen2_vl":
        image = torch.cat([torch.tensor([[52]]), image, torch.tensor([[53]])], -1)
    ids = torch.cat([words[:, :7], image, words[:, 7:12], image, words[:, 12:]], -1)
    return model.eval(), ids, extra


def generated(name, cache=None):
    model, ids, extra = build(name)
    options = dict(extra) | {"attention_mask": torch.ones_like(ids)}
    if name in ("gemma3", "paligemma"):
        options["token_type_ids"] = (ids == IMAGE).long()
    if name == "qwen2_vl":
        options["mm_token_type_ids"] = (ids == IMAGE).long()
    options |= {} if cache is None else cache_kwargs(cache)
    with torch.no_grad():
        return model.generate(
            ids,
            max_new_tokens=16,
            min_new_tokens=16,
            do_sample=False,
            suppress_tokens=[IMAGE, 51, 52, 53],
            **options,
        )


@pytest.mark.parametrize("name", list(BUILDERS))
def test_exact_mode_equals_dynamic_cache(name, tmp_path):
    model, _, _ = build(name)
    expected = generated(name, tf.DynamicCache(config=model.config))
    with stratakv.TieredCache(model.config, ram="1MiB", disk=tmp_path, page_tokens=16) as cache:
        assert torch.equal(generated(name, cache), expected)
        assert cache.stats()["cache"]["paged_layers"] >= 1


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in REFUSED])
def test_attached_equals_dynamic_cache(name, tmp_path):
    model, _, _ = build(name)
    expected = generated(name, tf.DynamicCache(config=model.config))
    with stratakv.attach(model), stratakv.TieredCache.open(model, tmp_path, page_tokens=16) as cache:
        assert torch.equal(generated(name, cache), expected)
    assert torch.equal(generated(name), expected)


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_attached_says_so_and_stays_as_it_was(name, tmp_path):
    model, _, _ = build(name)
    expected = generated(name)
    with (
        pytest.raises(ValueError, match=REFUSED[name]) as error,
        stratakv.attach(model),
        stratakv.TieredCache.open(model, tmp_path, page_tokens=16) as cache,
    ):
        generated(name, cache)
    assert "exact mode: do not attach" in str(error.value)
    assert torch.equal(generated(name), expected)
