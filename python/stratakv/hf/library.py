"""The parts of transformers that other rooms use, so that transformers is imported in one room."""

from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from stratakv.hf.compat import cache_kwargs, last_logits_only

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "DynamicCache",
    "cache_kwargs",
    "last_logits_only",
    "transformers_logging",
]
