"""The tie between a model and its caches: a hook that tells a cache what it is about to be given."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stratakv.hf.fingerprint import model_identity, model_name


class ModelBinding:
    """What a cache knows of its model; holds no reference that keeps the model alive.

    The hook looks for the cache among a pass's arguments, so it costs nothing when the model
    runs without one. It is removed when the last cache of the model is closed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.identity = model_identity(model)
        self.name = model_name(model)
        self._model = weakref.ref(model)
        self._num_users = 0
        self._remove: Callable[[], None] | None = None
        self._names = _parameter_names(model)

    @property
    def model(self) -> nn.Module | None:
        """The model, while it is there."""
        return self._model()

    def acquire(self) -> None:
        """One more cache uses the hook."""
        self._num_users += 1
        model = self._model()
        if self._remove is None and model is not None:
            handle = model.register_forward_pre_hook(self._hook, with_kwargs=True)
            self._remove = handle.remove

    def release(self) -> None:
        """One cache less."""
        self._num_users -= 1
        if self._num_users == 0 and self._remove is not None:
            self._remove()
            self._remove = None

    def abandon(self) -> None:
        """One cache less, found by the garbage collector.

        The hook stays: a collection can happen while PyTorch walks over its hooks. It does
        nothing without a cache, and the next `release` removes it.
        """
        self._num_users -= 1

    def layer_device(self, index: int) -> torch.device:
        """Where the model's decoder layer of that index lives."""
        model = self._model()
        if model is None:
            return torch.device("cpu")
        get_decoder: Any = getattr(model, "get_decoder", None)
        decoder = model if get_decoder is None else get_decoder()
        layers = getattr(decoder, "layers", None)
        module = layers[index] if isinstance(layers, nn.ModuleList) and index < len(layers) else model
        return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = dict(zip(self._names, args, strict=False)) | kwargs
        # Found by what it is: its name is another one in each family of releases and models.
        for cache in arguments.values():
            if getattr(cache, "binding", None) is self:
                cache.before_forward(arguments)
                return


_BINDINGS: weakref.WeakKeyDictionary[nn.Module, ModelBinding] = weakref.WeakKeyDictionary()


def bind(model: nn.Module) -> ModelBinding:
    """The model's binding, whose fingerprint is of now: weights may change between two calls."""
    known = _BINDINGS.get(model)
    if known is not None and known.identity == model_identity(model):
        return known
    binding = _BINDINGS[model] = ModelBinding(model)
    return binding


def _parameter_names(model: nn.Module) -> list[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in positional]
