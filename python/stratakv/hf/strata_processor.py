"""What turns images and text into what `StrataForConditionalGeneration` takes; needs Pillow for files only.

processor = AutoProcessor.from_pretrained("my-model/")
inputs = processor(images=[photo], text="<|image|>What is on it?", return_tensors="pt")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

# Not from transformers itself, where it is an error without Pillow (before 5.24 without torchvision, too).
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from stratakv.hf.strata_vision import StrataVLConfig
from stratakv.nn.vision import NUM_CHANNELS, VisionConfig

IMAGE_TOKEN = "<|image|>"  # noqa: S105  # a token of text
BYTE_MAX = 255


class StrataImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Images of any size to squares of normalised pixels.

    Args:
        image_size: pixels of a side.
        image_mean: taken off each channel, of values from 0 to 1.
        image_std: each channel is divided by it.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # theirs

    def __init__(
        self,
        image_size: int = 224,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Images to `pixel_values`, (N, 3, image_size, image_size) float32.

        Args:
            images: one or several: Pillow images; (H, W, 3) or (H, W) arrays of bytes, or of floats from
                0 to 1; tensors of (3, H, W), alike.
            return_tensors: "pt", "np" or None, as everywhere in transformers.
            **kwargs: none is accepted.

        Raises:
            ValueError: something that is no image, or an option that is not known.
        """
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)}: this processor has image_size, image_mean and image_std")
        several = images if isinstance(images, list | tuple) else [images]
        if not several:
            raise ValueError("no images: leave images= out for text alone")
        pixels = torch.stack([self._pixels(image) for image in several])
        return BatchFeature({"pixel_values": pixels.numpy()}, tensor_type=return_tensors)

    def _pixels(self, image: Any) -> Tensor:
        """(3, image_size, image_size)."""
        size = (self.image_size, self.image_size)
        resized = functional.interpolate(
            _channels_first(image)[None], size=size, mode="bilinear", antialias=True, align_corners=False
        )[0]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return (resized - mean) / std


def _channels_first(image: Any) -> Tensor:
    """(3, H, W) float32 from 0 to 1."""
    if hasattr(image, "convert"):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
        if image.dim() == 2:
            image = image[..., None].expand(-1, -1, NUM_CHANNELS)
        if image.dim() == 3:
            image = image.permute(2, 0, 1)
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != NUM_CHANNELS:
        shape = tuple(getattr(image, "shape", ()))
        raise ValueError(
            f"a {type(image).__name__} of shape {shape} is no image: accepted are Pillow images, (H, W, 3) "
            "or (H, W) arrays and (3, H, W) tensors"
        )
    if not image.is_floating_point():
        return image.float() / BYTE_MAX
    if image.numel() and not (float(image.min()) >= 0 and float(image.max()) <= 1):
        raise ValueError("an image of floats must have values from 0 to 1")
    return image.float()


class StrataProcessor(ProcessorMixin):  # type: ignore[misc]
    """Text with a placeholder for each image, to ids and pixels.

    Args:
        image_processor: a `StrataImageProcessor`.
        tokenizer: one that has the placeholder as a token.
        tokens_per_image: how many tokens the model has for an image.
        image_token: the placeholder.
        chat_template: of conversations; the tokenizer's own where None.

    Raises:
        ValueError: a tokenizer without the placeholder.
    """

    def __init__(
        self,
        image_processor: StrataImageProcessor | None = None,
        tokenizer: Any = None,
        tokens_per_image: int = 1,
        image_token: str = IMAGE_TOKEN,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        if tokenizer is not None and tokenizer.convert_tokens_to_ids(image_token) in (
            None,
            tokenizer.unk_token_id,
        ):
            raise ValueError(
                f"the tokenizer has no {image_token!r}: add it with "
                f"tokenizer.add_special_tokens({{'additional_special_tokens': [{image_token!r}]}})"
            )
        self.tokens_per_image, self.image_token = tokens_per_image, image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def of(
        cls, vision: VisionConfig, tokenizer: Any, *, image_token: str = IMAGE_TOKEN, **kwargs: Any
    ) -> StrataProcessor:
        """The processor of a model with this encoder.

        Args:
            vision: the encoder's sizes.
            tokenizer: the model's.
            image_token: the placeholder.
            **kwargs: as for the class.
        """
        images = StrataImageProcessor(image_size=vision.image_size)
        return cls(images, tokenizer, vision.tokens_per_image, image_token, **kwargs)

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """`input_ids`, `attention_mask` and, where there are images, `pixel_values` (B, I, 3, size, size).

        Args:
            images: all rows' images in order: one, a list, or a list for each row. A row with fewer images
                than another is filled up with black ones, which nothing looks at.
            text: a row or several, with a placeholder for each image.
            **kwargs: `return_tensors`, `padding` and whatever else the tokenizer takes.

        Raises:
            ValueError: no text, or another number of images than of placeholders.
        """
        if text is None:
            raise ValueError("text= is missing: an image alone is text=" + repr(self.image_token))
        rows = [text] if isinstance(text, str) else list(text)
        flat = _flat(images)
        counts = [row.count(self.image_token) for row in rows]
        if sum(counts) != len(flat):
            raise ValueError(
                f"{len(flat)} images, but {sum(counts)} times {self.image_token!r} in the text "
                f"({', '.join(map(str, counts))} in each row)"
            )
        return_tensors = kwargs.pop("return_tensors", None)
        long = [row.replace(self.image_token, self.image_token * self.tokens_per_image) for row in rows]
        data = dict(self.tokenizer(long, **kwargs))
        if flat:
            data["pixel_values"] = self._rows_of_pixels(flat, counts)
        return BatchFeature(data, tensor_type=return_tensors)

    def _rows_of_pixels(self, images: list[Any], counts: list[int]) -> np.ndarray[Any, Any]:
        """(B, I, 3, size, size)."""
        pixels = self.image_processor(images)["pixel_values"]
        packed = np.zeros((len(counts), max(counts), *pixels.shape[1:]), dtype=pixels.dtype)
        start = 0
        for row, count in enumerate(counts):
            packed[row, :count] = pixels[start : start + count]
            start += count
        return packed


def _flat(images: Any) -> list[Any]:
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [one for item in images for one in (item if isinstance(item, list | tuple) else [item])]


AutoImageProcessor.register(StrataVLConfig, slow_image_processor_class=StrataImageProcessor)
AutoProcessor.register(StrataVLConfig, StrataProcessor)
