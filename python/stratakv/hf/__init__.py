"""The only home of `import transformers`: caches that Hugging Face models accept."""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    if error.name != "transformers":  # installed, but something it needs is not
        raise
    raise ImportError(
        "stratakv.TieredCache needs transformers 5.15 or later: pip install 'stratakv[hf]'"
    ) from error

from stratakv.hf.attachment import Attachment, attach
from stratakv.hf.attention import UnsupportedModelError
from stratakv.hf.cache import TieredCache
from stratakv.hf.strata_lm import StrataConfig, StrataForCausalLM, StrataModel

__all__ = [
    "Attachment",
    "StrataConfig",
    "StrataForCausalLM",
    "StrataModel",
    "TieredCache",
    "UnsupportedModelError",
    "attach",
]
