"""Images in a `StrataLM`'s sequence: an encoder of patches, a projector, and where its tokens go.

    vision = stratakv.nn.VisionConfig(image_size=224, patch_size=14)
    model = stratakv.nn.StrataVisionLM(config, vision, image_token_id=3)
    loss = model.loss(input_ids_BT, pixel_values)  # `vision.tokens_per_image` times id 3 for each image

An image is resized to a square, cut into patches, and seen whole by a transformer without positions
in between: every patch attends to every other. Squares of `merge` by `merge` patches become one token
of the language model each, row by row. In the sequence they are tokens like others: causal, with the
next positions, with keys and values in the cache. Memories do not look them up, and n-grams do not
reach across them. Torch only; `stratakv.hf` has the transformers model and its processor.

B batch, I images of a row, A patches of an image, P tokens of an image, T tokens, H heads, D head dim,
E width of the encoder, C width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stratakv.nn.transformer import (
    INITIAL_STD,
    Decoder,
    Recompute,
    Surroundings,
    TransformerConfig,
    causal_attention,
    initialize,
)

IGNORED = -100
NUM_CHANNELS = 3


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of an image encoder and its projector.

    Attributes:
        image_size: pixels of a side, to which every image is resized.
        patch_size: pixels of a patch's side.
        hidden_size: E.
        num_layers: blocks of an attention and an MLP.
        num_heads: H.
        intermediate_size: width of the MLP; None is 4 E.
        merge: patches of a side that become one token.
        norm_eps: of every norm.

    Raises:
        ValueError: sizes that do not go together.
    """

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 6
    intermediate_size: int | None = None
    merge: int = 2
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "hidden_size", "num_layers", "num_heads", "merge"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.image_size % (self.patch_size * self.merge):
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size * merge = "
                f"{self.patch_size * self.merge}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}"
            )

    @property
    def side(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_image(self) -> int:
        """P."""
        return (self.side // self.merge) ** 2

    @property
    def mlp_size(self) -> int:
        """Width of the MLP."""
        return 4 * self.hidden_size if self.intermediate_size is None else self.intermediate_size


class PatchBlock(nn.Module):
    """Attention among all patches of an image, and an MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.o_proj = nn.Linear(width, width)
        self.mlp_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.up_proj = nn.Linear(width, config.mlp_size)
        self.down_proj = nn.Linear(config.mlp_size, width)

    def forward(self, x_BAE: Tensor) -> Tensor:
        """(B, A, E) to (B, A, E)."""
        x_BAE = x_BAE + self._attend(self.attention_norm(x_BAE))
        out_BAE: Tensor = x_BAE + self.down_proj(functional.gelu(self.up_proj(self.mlp_norm(x_BAE))))
        return out_BAE

    def _attend(self, x_BAE: Tensor) -> Tensor:
        qkv_BA3HD = self.qkv_proj(x_BAE).unflatten(-1, (3, self.num_heads, -1))
        q_BHAD, k_BHAD, v_BHAD = qkv_BA3HD.permute(2, 0, 3, 1, 4)
        seen_BHAD = functional.scaled_dot_product_attention(q_BHAD, k_BHAD, v_BHAD)
        out_BAE: Tensor = self.o_proj(seen_BHAD.transpose(1, 2).flatten(-2))
        return out_BAE


class ImageEncoder(nn.Module):
    """Pixels to patches that know their image.

    Attributes:
        positions: (A, E) learned, one for each place.

    Source: ViT (arXiv 2010.11929), without its class token; norms are RMSNorm.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        pixels = NUM_CHANNELS * config.patch_size**2
        self.patch_proj = nn.Linear(pixels, config.hidden_size)
        self.positions = nn.Parameter(torch.empty(config.side**2, config.hidden_size))
        self.blocks = nn.ModuleList(PatchBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        nn.init.normal_(self.positions, std=INITIAL_STD)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, A, E), patches row by row.

        Raises:
            ValueError: images of another shape.
        """
        size, patch = self.config.image_size, self.config.patch_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (NUM_CHANNELS, size, size):
            raise ValueError(
                f"expected images of shape (N, {NUM_CHANNELS}, {size}, {size}), not {tuple(pixels.shape)}"
            )
        side = self.config.side
        grid = pixels.reshape(-1, NUM_CHANNELS, side, patch, side, patch)
        patches_NAX = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x_NAE = self.patch_proj(patches_NAX.to(self.patch_proj.weight.dtype)) + self.positions
        for block in self.blocks:
            x_NAE = block(x_NAE)
        out_NAE: Tensor = self.norm(x_NAE)
        return out_NAE


class ImageProjector(nn.Module):
    """Squares of patches to tokens of the language model.

    Source: LLaVA-1.5's two layers (arXiv 2310.03744) on merged patches (InternVL, arXiv 2404.16821).
    """

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        self.side, self.merge = config.side, config.merge
        self.first = nn.Linear(config.merge**2 * config.hidden_size, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, x_NAE: Tensor) -> Tensor:
        """(N, A, E) to (N, P, C), row by row."""
        merged = self.side // self.merge
        grid = x_NAE.reshape(len(x_NAE), merged, self.merge, merged, self.merge, -1)
        squares_NPX = grid.transpose(2, 3).flatten(3).flatten(1, 2)
        out_NPC: Tensor = self.second(functional.gelu(self.first(squares_NPX)))
        return out_NPC


def place_images(
    h_BTC: Tensor, is_image_BT: Tensor, features: Tensor, tokens_before_B: Tensor | None = None
) -> Tensor:
    """Embedded text with the images' tokens where they belong.

    Args:
        h_BTC: (B, T, C) embedded tokens.
        is_image_BT: (B, T) bool, which of them are an image's.
        features: (B, I, P, C) of each row's images in order; a row may use fewer than all.
        tokens_before_B: (B,) image tokens of each row before these, for a text in pieces; None is 0.

    Returns:
        (B, T, C) in the dtype of `h_BTC`.

    Raises:
        ValueError: more image tokens than images have.
    """
    flat_BXC = features.flatten(1, 2).to(h_BTC.dtype)
    index_BT = is_image_BT.long().cumsum(-1) - 1
    if tokens_before_B is not None:
        index_BT = index_BT + tokens_before_B[:, None].to(index_BT)
    needed = int(index_BT.max()) + 1 if index_BT.numel() else 0
    if needed > flat_BXC.shape[1] or len(flat_BXC) != len(h_BTC):
        raise ValueError(
            f"{len(h_BTC)} rows with up to {needed} image tokens, for {len(flat_BXC)} rows of "
            f"{features.shape[1]} images of {features.shape[2]} tokens"
        )
    index_BT1 = index_BT.clamp_min(0)[..., None]
    taken_BTC = flat_BXC.gather(1, index_BT1.expand(-1, -1, flat_BXC.shape[-1]))
    return torch.where(is_image_BT[..., None], taken_BTC, h_BTC)


class VisionParts:
    """Encoder, projector and placing, for a class that is an `nn.Module` otherwise."""

    encoder: ImageEncoder
    projector: ImageProjector
    image_token_id: int

    def build_vision(self, vision: VisionConfig, dim: int, image_token_id: int) -> None:
        """Makes the modules."""
        self.encoder = ImageEncoder(vision)
        self.projector = ImageProjector(vision, dim)
        self.image_token_id = image_token_id

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, I, 3, image_size, image_size) to (B, I, P, C).

        Raises:
            ValueError: images of another shape.
        """
        if pixel_values.dim() != 5:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: expected (rows, images of a row, "
                f"{NUM_CHANNELS}, size, size)"
            )
        features_NPC = self.projector(self.encoder(pixel_values.flatten(0, 1)))
        out: Tensor = features_NPC.unflatten(0, pixel_values.shape[:2])
        return out

    def with_images(
        self,
        h_BTC: Tensor,
        input_ids_BT: Tensor,
        pixel_values: Tensor | None,
        tokens_before_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embedded tokens with images in place, and the ids for memories: -1 where an image is.

        Raises:
            ValueError: image tokens without images, or more of them than images have.
        """
        is_image_BT = input_ids_BT == self.image_token_id
        if bool(is_image_BT.any()):
            if pixel_values is None:
                raise ValueError(
                    f"{int(is_image_BT.sum())} image tokens (id {self.image_token_id}), but no pixel_values"
                )
            features = self.image_features(pixel_values)
            h_BTC = place_images(h_BTC, is_image_BT, features, tokens_before_B)
        return h_BTC, torch.where(is_image_BT, -1, input_ids_BT)


class VisionDecoder(nn.Module, VisionParts):
    """Tokens and images to hidden states."""

    def __init__(
        self,
        config: TransformerConfig,
        vision: VisionConfig,
        image_token_id: int,
        vocabulary: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.build_vision(vision, config.hidden_size, image_token_id)
        self.language_model = Decoder(config, vocabulary)

    def forward(
        self, input_ids_BT: Tensor, pixel_values: Tensor | None = None, *, recompute: Recompute = "nothing"
    ) -> Tensor:
        """(B, T) ids and (B, I, 3, size, size) images to (B, T, C)."""
        decoder = self.language_model
        h_BTC, ids_BT = self.with_images(decoder.embed_tokens(input_ids_BT), input_ids_BT, pixel_values)
        positions_1T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)[None]
        cos, sin = decoder.rotary_emb(h_BTC, positions_1T)
        return decoder.run(h_BTC, Surroundings(cos, sin, causal_attention, ids=ids_BT), recompute=recompute)


class StrataVisionLM(nn.Module):
    """A `StrataLM` that reads images, for training.

    Args:
        config: of the language model.
        vision: of the encoder.
        image_token_id: the id that stands for each token of an image.
        vocabulary: see `StrataLM`.

    Attributes:
        model: the `VisionDecoder`.
        lm_head: (V, C) output; the embedding's own matrix where `config.tie_embeddings`.

    Raises:
        ValueError: an id outside the vocabulary.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vision: VisionConfig,
        image_token_id: int,
        vocabulary: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= image_token_id < config.vocab_size:
            raise ValueError(f"image_token_id={image_token_id} is outside the {config.vocab_size} tokens")
        self.config, self.vision, self.image_token_id = config, vision, image_token_id
        self.model = VisionDecoder(config, vision, image_token_id, vocabulary)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight
        initialize(self.model.language_model, config)

    def forward(
        self, input_ids_BT: Tensor, pixel_values: Tensor | None = None, *, recompute: Recompute = "nothing"
    ) -> Tensor:
        """(B, T) ids and (B, I, 3, size, size) images to (B, T, V) logits."""
        logits_BTV: Tensor = self.lm_head(self.model(input_ids_BT, pixel_values, recompute=recompute))
        return logits_BTV

    def loss(
        self, input_ids_BT: Tensor, pixel_values: Tensor | None = None, *, recompute: Recompute = "nothing"
    ) -> Tensor:
        """Mean cross entropy (nats) of each text token given what comes before it, in float32.

        Args:
            input_ids_BT: (B, T), T at least 2; image tokens are not predicted.
            pixel_values: (B, I, 3, size, size).
            recompute: see `DecoderParts.run`.

        Raises:
            ValueError: rows of one token, or image tokens without images.
        """
        if input_ids_BT.shape[1] < 2:
            raise ValueError("a loss needs rows of at least two tokens")
        logits_BTV = self(input_ids_BT[:, :-1], pixel_values, recompute=recompute)
        wanted_BT = input_ids_BT[:, 1:]
        wanted_BT = wanted_BT.masked_fill(wanted_BT == self.image_token_id, IGNORED)
        return functional.cross_entropy(
            logits_BTV.flatten(0, 1).float(), wanted_BT.flatten(), ignore_index=IGNORED
        )
