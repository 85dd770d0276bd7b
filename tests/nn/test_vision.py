"""Images in StrataLM: the encoder against loops, caches, sessions, the processor, files."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import stratakv
from stratakv.nn import (
    ImageEncoder,
    ImageProjector,
    MemoryConfig,
    StrataVisionLM,
    TransformerConfig,
    VisionConfig,
)
from stratakv.nn.vision import place_images
from tests.nn import tiny

VOCAB, IMAGE = 61, 60
VISION = VisionConfig(image_size=24, patch_size=4, hidden_size=16, num_layers=2, num_heads=2)
TOKENS = VISION.tokens_per_image  # 9
SIZES = tiny.SIZES | {"vocab_size": VOCAB}
MEMORY = MemoryConfig(layers=(0, 2), compressed_size=61, table_sizes=(97, 101), num_heads=2, ngram_dim=8)
KINDS = {"plain": {"num_streams": 1}, "mhc": {}, "memory": {"memory": MEMORY}}


def vision_lm(kind="memory"):
    torch.manual_seed(2)
    model = StrataVisionLM(TransformerConfig(**(SIZES | KINDS[kind])), VISION, IMAGE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1.0 if "table" in name or "conv" in name else 0.15))
    return model.eval()


def hf_model(kind="memory"):
    from stratakv.hf import StrataForConditionalGeneration

    return StrataForConditionalGeneration.from_vision_lm(vision_lm(kind), pad_token_id=0).eval()


def text(length, seed=0):
    return torch.randint(1, IMAGE, (1, length), generator=torch.Generator().manual_seed(seed))


def images(rows=1, num=2, seed=0):
    return torch.randn(rows, num, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def mixed(seed=0):
    """(1, 43): text, an image, five tokens, an image, text."""
    image = torch.full((1, TOKENS), IMAGE)
    return torch.cat([text(11, seed), image, text(5, seed + 1), image, text(9, seed + 2)], -1)


def generated(model, tokens, cache=None, num=16, **options):
    from stratakv.hf.library import cache_kwargs

    options = {"attention_mask": torch.ones_like(tokens)} | options
    options |= {} if cache is None else cache_kwargs(cache)
    # An image token cannot be generated: there would be no image for it.
    with torch.no_grad():
        return model.generate(
            tokens,
            max_new_tokens=num,
            min_new_tokens=num,
            do_sample=False,
            suppress_tokens=[IMAGE],
            **options,
        )


def without_cache(model, tokens, pixels, num=16):
    with torch.no_grad():
        for _ in range(num):
            logits = model(tokens, pixel_values=pixels, use_cache=False).logits[:, -1]
            logits[:, IMAGE] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], -1)
    return tokens


def test_patches_are_where_they_were():
    """With a projection that picks single pixels, the encoder's input is told apart by place."""
    encoder = ImageEncoder(
        VisionConfig(image_size=8, patch_size=2, hidden_size=12, num_layers=1, num_heads=2)
    )
    with torch.no_grad():
        encoder.patch_proj.weight.copy_(torch.eye(12))
        encoder.patch_proj.bias.zero_()
        encoder.positions.zero_()
    encoder.blocks, encoder.norm = torch.nn.ModuleList(), torch.nn.Identity()
    pixels = torch.randn(2, 3, 8, 8)
    out = encoder(pixels)
    assert out.shape == (2, 16, 12)
    for row in range(4):
        for column in range(4):
            patch = pixels[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(out[:, 4 * row + column], patch.flatten(1))


def test_the_projector_merges_neighbours():
    config = VisionConfig(image_size=8, patch_size=2, hidden_size=4, num_layers=1, num_heads=1)
    projector = ImageProjector(config, 16)
    with torch.no_grad():
        projector.first.weight.copy_(torch.eye(16))
        projector.first.bias.zero_()
        projector.second.weight.copy_(torch.eye(16))
        projector.second.bias.zero_()
    patches = torch.randn(3, 16, 4)
    out = projector(patches)
    grid = patches.reshape(3, 4, 4, 4)
    for row in range(2):
        for column in range(2):
            square = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            torch.testing.assert_close(out[:, 2 * row + column], torch.nn.functional.gelu(square))


def test_a_block_equals_pytorchs_encoder_layer():
    """With norms and weights carried over, in float64."""
    config = VisionConfig(image_size=8, patch_size=2, hidden_size=16, num_layers=1, num_heads=4)
    block = ImageEncoder(config).blocks[0].double()
    theirs = torch.nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    theirs.norm1, theirs.norm2 = block.attention_norm, block.mlp_norm
    pairs = [
        (theirs.self_attn.in_proj_weight, block.qkv_proj.weight),
        (theirs.self_attn.in_proj_bias, block.qkv_proj.bias),
        (theirs.self_attn.out_proj.weight, block.o_proj.weight),
        (theirs.self_attn.out_proj.bias, block.o_proj.bias),
        (theirs.linear1.weight, block.up_proj.weight),
        (theirs.linear1.bias, block.up_proj.bias),
        (theirs.linear2.weight, block.down_proj.weight),
        (theirs.linear2.bias, block.down_proj.bias),
    ]
    with torch.no_grad():
        for mine, other in pairs:
            mine.copy_(other)
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x), theirs.train()(x))


def test_images_are_placed_row_by_row_and_in_pieces():
    features = torch.randn(2, 2, 3, 4)
    h = torch.zeros(2, 9, 4)
    is_image = torch.zeros(2, 9, dtype=torch.bool)
    is_image[0, [1, 2, 3, 5, 6, 7]] = True
    is_image[1, 4:7] = True
    out = place_images(h, is_image, features)
    assert torch.equal(out[0, is_image[0]], features[0].flatten(0, 1))
    assert torch.equal(out[1, 4:7], features[1, 0])
    assert not out[~is_image].any()
    first = place_images(h[:, :6], is_image[:, :6], features)
    rest = place_images(h[:, 6:], is_image[:, 6:], features, is_image[:, :6].sum(-1))
    assert torch.equal(torch.cat([first, rest], 1), out)
    with pytest.raises(ValueError, match="up to 6 image tokens, for 2 rows of 1 images of 3"):
        place_images(h, is_image, features[:, :1])


def test_learns_from_images():
    """The text says which of two images is shown: only the image tells."""
    torch.manual_seed(0)
    model = StrataVisionLM(TransformerConfig(**SIZES), VISION, IMAGE)
    pixels = torch.stack([torch.full((1, 3, 24, 24), -1.0), torch.full((1, 3, 24, 24), 1.0)])
    tokens = torch.cat([torch.full((2, TOKENS), IMAGE), torch.tensor([[5, 7], [5, 9]])], -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(90):
        optimizer.zero_grad()
        loss = model.loss(tokens, pixels)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        assert model(tokens, pixels)[:, -2].argmax(-1).tolist() == [7, 9]
        assert float(model.loss(tokens, pixels)) < 0.1
        torch.testing.assert_close(model.loss(tokens, pixels, recompute="blocks"), model.loss(tokens, pixels))


@pytest.mark.hf
@pytest.mark.parametrize("kind", list(KINDS))
def test_is_the_same_in_transformers(kind):
    model, tokens, pixels = vision_lm(kind), mixed(), images()
    from stratakv.hf import StrataForConditionalGeneration

    twin = StrataForConditionalGeneration.from_vision_lm(model).eval()
    with torch.no_grad():
        expected = model(tokens, pixels)
        torch.testing.assert_close(twin(tokens, pixel_values=pixels).logits, expected, rtol=1e-5, atol=1e-5)
        assert (model(tokens, images(seed=1)) - expected).abs().max() > 0.1


@pytest.mark.hf
@pytest.mark.parametrize("kind", list(KINDS))
def test_generation_equals_dynamic_cache_and_none(kind, tmp_path):
    from transformers import DynamicCache

    model, tokens, pixels = hf_model(kind), mixed(), images()
    expected = without_cache(model, tokens, pixels)
    cache = DynamicCache(config=model.config)
    assert torch.equal(generated(model, tokens, cache, pixel_values=pixels), expected)
    with stratakv.TieredCache(model.config, ram="1MiB", disk=tmp_path / "a", page_tokens=16) as cache:
        assert torch.equal(generated(model, tokens, cache, pixel_values=pixels), expected)
        assert cache.stats()["cache"]["tokens"] == tokens.shape[1] + 15  # images' tokens are in pages
    with stratakv.attach(model):
        with stratakv.TieredCache.open(model, tmp_path / "b", page_tokens=16) as cache:
            assert torch.equal(generated(model, tokens, cache, pixel_values=pixels), expected)
        selection = stratakv.Selection(budget=48, sinks=8, window=8, dense_below=48, unread=1.0)
        with stratakv.TieredCache.open(model, None, page_tokens=16, budget=selection) as cache:
            out = generated(model, tokens, cache, pixel_values=pixels)
            assert out.shape == expected.shape
            assert cache.stats()["cache"]["read_tokens"] <= 48


@pytest.mark.hf
@pytest.mark.parametrize("sizes", [1, 7, [15, 28], [30, 1, 12]])
def test_prefill_in_pieces_equals_the_whole(sizes, tmp_path):
    """Pieces end inside images, too."""
    from stratakv.hf.library import cache_kwargs

    model, tokens, pixels = hf_model(), mixed(), images()
    with (
        stratakv.TieredCache(model.config, ram="1MiB", disk=tmp_path, page_tokens=16) as cache,
        torch.no_grad(),
    ):
        whole = model(tokens, pixel_values=pixels, use_cache=False).logits
        parts, before = [], torch.zeros(1, dtype=torch.long)
        for piece in tokens.split(sizes, 1):
            out = model(piece, pixel_values=pixels, image_tokens_before=before, **cache_kwargs(cache))
            parts.append(out.logits)
            before = before + (piece == IMAGE).sum(-1)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.hf
def test_rows_with_other_numbers_of_images_and_padding():
    model = hf_model()
    one = torch.cat([text(6, 3), torch.full((1, TOKENS), IMAGE), text(4, 5)], -1)
    two = mixed()
    padding = torch.zeros(1, two.shape[1] - one.shape[1], dtype=torch.long)
    tokens = torch.cat([two, torch.cat([padding, one], -1)])
    pixels = images(rows=2, num=2)
    both = generated(model, tokens, attention_mask=(tokens != 0).long(), pixel_values=pixels)
    assert torch.equal(both[:1], without_cache(model, two, pixels[:1]))
    assert torch.equal(both[1:, padding.shape[1] :], without_cache(model, one, pixels[1:, :1]))
    beams = generated(model, tokens, attention_mask=(tokens != 0).long(), pixel_values=pixels, num_beams=2)
    assert beams.shape == both.shape


@pytest.mark.hf
def test_sessions_with_images_resume(tmp_path):
    model, pixels = hf_model(), images()
    tokens = mixed()
    first = tokens[:, :31]  # ends inside the second image's surroundings: one image is held
    expected = without_cache(model, tokens, pixels)
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache, torch.no_grad():
        from stratakv.hf.library import cache_kwargs

        model(first, pixel_values=pixels, **cache_kwargs(cache))
        cache.save()
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        assert cache.get_seq_length() == 30
        assert torch.equal(generated(model, tokens, cache, pixel_values=pixels), expected)
        cache.save()
    # A conversation about images goes on without them.
    more = torch.cat([expected, text(3, seed=8)], -1)
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        assert torch.equal(generated(model, more, cache), without_cache(model, more, pixels))
    # Other images under the same ids are never taken for these.
    others = images(seed=5)
    with stratakv.TieredCache.open(model, tmp_path, name="a", page_tokens=16) as cache:
        assert cache.match(tokens) == 0
        assert torch.equal(
            generated(model, tokens, cache, pixel_values=others), without_cache(model, tokens, others)
        )


@pytest.mark.hf
def test_memories_do_not_reach_across_images():
    """Of the memory alone: what comes after an image is as if the text began there."""
    memory = vision_lm().model.language_model.layers[0].memory
    ids = torch.cat([text(7), torch.full((1, 2), -1), text(8, seed=1)], -1)
    x = torch.randn(1, 17, 4, 32)
    with torch.no_grad():
        out = memory(x, ids)
        torch.testing.assert_close(out[:, 9:], memory(x[:, 9:], ids[:, 9:]))
        assert torch.equal(out[:, 7:9], x[:, 7:9])
        unbroken = torch.cat([text(7), text(2, seed=2), text(8, seed=1)], -1)
        assert not torch.allclose(memory(x, unbroken)[:, 9:], out[:, 9:])


def tokenizer():
    from stratakv.hf.tokenizer import learn_tokenizer

    made = learn_tokenizer(["the cat sat on the mat and looked at the image"] * 9, 280)
    made.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|image|>"]})
    made.padding_side = "left"
    return made


@pytest.mark.hf
def test_saved_with_its_processor_and_loaded_in_a_fresh_process(tmp_path):
    from stratakv.hf import StrataForConditionalGeneration, StrataProcessor

    words = tokenizer()
    image_id = words.convert_tokens_to_ids("<|image|>")
    torch.manual_seed(0)
    model = StrataVisionLM(TransformerConfig(**(SIZES | {"vocab_size": len(words)})), VISION, image_id)
    model = StrataForConditionalGeneration.from_vision_lm(model, eos_token_id=words.eos_token_id).eval()
    processor = StrataProcessor.of(VISION, words)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (31, 50, 3), dtype=np.uint8)
    np.save(tmp_path / "photo.npy", photo)
    inputs = processor(images=[photo], text="look: <|image|> a cat", return_tensors="pt")
    assert int((inputs["input_ids"] == image_id).sum()) == TOKENS
    assert inputs["pixel_values"].shape == (1, 1, 3, 24, 24)
    with torch.no_grad():
        expected = model(**inputs).logits
    code = (
        "import numpy, torch, stratakv.hf\n"
        "from PIL import Image\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"processor = AutoProcessor.from_pretrained({str(tmp_path)!r})\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r}).eval()\n"
        f"photo = Image.fromarray(numpy.load({str(tmp_path / 'photo.npy')!r}))\n"
        "inputs = processor(images=photo, text='look: <|image|> a cat', return_tensors='pt')\n"
        "with torch.no_grad(): logits = model(**inputs).logits\n"
        f"torch.save(logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


@pytest.mark.hf
def test_the_processor_packs_rows_and_conversations():
    from stratakv.hf import StrataProcessor

    processor = StrataProcessor.of(VISION, tokenizer())
    black, white = np.zeros((9, 9, 3), np.uint8), np.full((30, 20), 255, np.uint8)
    inputs = processor(
        images=[[black, white], [white]],
        text=["<|image|> the <|image|>", "<|image|> mat"],
        padding=True,
        return_tensors="pt",
    )
    pixels = inputs["pixel_values"]
    assert pixels.shape == (2, 2, 3, 24, 24)
    for (row, place), value in {(0, 0): -1.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 0.0}.items():
        torch.testing.assert_close(pixels[row, place], torch.full((3, 24, 24), value))
    image_id = processor.tokenizer.convert_tokens_to_ids("<|image|>")
    assert (inputs["input_ids"] == image_id).sum(-1).tolist() == [2 * TOKENS, TOKENS]
    assert inputs["attention_mask"][1, 0] == 0
    alone = processor(text="the cat", return_tensors="pt")
    assert "pixel_values" not in alone
    half = torch.zeros(3, 48, 24)
    half[:, 24:] = 1.0
    squeezed = processor(images=half, text="<|image|>", return_tensors="pt")["pixel_values"][0, 0]
    torch.testing.assert_close(squeezed[:, :10], torch.full((3, 10, 24), -1.0))
    torch.testing.assert_close(squeezed[:, 14:], torch.full((3, 10, 24), 1.0))


@pytest.mark.hf
def test_what_is_refused():
    from stratakv.hf import StrataProcessor, StrataVisionConfig, StrataVLConfig
    from stratakv.hf.tokenizer import learn_tokenizer

    for options, message in [
        ({"image_size": 25}, "multiple of patch_size"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"merge": 0}, "merge=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            VisionConfig(**options)
    with pytest.raises(ValueError, match="multiple of patch_size"):
        StrataVisionConfig(image_size=25)
    with pytest.raises(ValueError, match="image_token_id=99"):
        StrataVisionLM(TransformerConfig(**SIZES), VISION, 99)
    with pytest.raises(ValueError, match="image_token_id=40000"):
        StrataVLConfig(image_token_id=40000)
    model, tokens, pixels = hf_model(), mixed(), images()
    with pytest.raises(ValueError, match="18 image tokens .id 60., but no pixel_values"):
        model(tokens)
    with pytest.raises(ValueError, match="up to 18 image tokens"):
        model(tokens, pixel_values=pixels[:, :1])
    with pytest.raises(ValueError, match=r"expected \(rows, images of a row"):
        model(tokens, pixel_values=pixels[0])
    with pytest.raises(ValueError, match=r"\(N, 3, 24, 24\)"):
        model(tokens, pixel_values=pixels[..., :20])
    with pytest.raises(ValueError, match="say where"):
        model(inputs_embeds=torch.zeros(1, 3, 32), pixel_values=pixels)
    processor = StrataProcessor.of(VISION, tokenizer())
    black = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match="1 images, but 2 times"):
        processor(images=[black], text="<|image|><|image|>")
    with pytest.raises(ValueError, match="text= is missing"):
        processor(images=[black])
    with pytest.raises(ValueError, match="values from 0 to 1"):
        processor(images=[np.full((4, 4, 3), 7.0)], text="<|image|>")
    with pytest.raises(ValueError, match="is no image"):
        processor(images=["cat.png"], text="<|image|>")
    with pytest.raises(ValueError, match="do_resize: this processor"):
        processor.image_processor([black], do_resize=False)
    with pytest.raises(ValueError, match="the tokenizer has no"):
        StrataProcessor.of(VISION, learn_tokenizer(["a"], 258))
