"""The only home of `import transformers`: caches that Hugging Face models accept."""

from stratakv.errors import NotInstalledError

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    if error.name != "transformers":  # installed, but something it needs is not
        raise
    raise NotInstalledError(
        "stratakv.TieredCache needs transformers 5.15 or later", "pip install 'stratakv[hf]'"
    ) from error

from stratakv.hf.attachment import Attachment, attach
from stratakv.hf.attention import UnsupportedModelError
from stratakv.hf.cache import TieredCache
from stratakv.hf.hyper_models import model_class_of as _model_class_of  # noqa: F401  # registers them
from stratakv.hf.kept_pages import KeptPages, Put
from stratakv.hf.strata_lm import StrataConfig, StrataForCausalLM, StrataModel
from stratakv.hf.strata_processor import StrataImageProcessor, StrataProcessor
from stratakv.hf.strata_vision import (
    StrataForConditionalGeneration,
    StrataVisionConfig,
    StrataVLConfig,
    StrataVLModel,
)

__all__ = [
    "Attachment",
    "KeptPages",
    "Put",
    "StrataConfig",
    "StrataForCausalLM",
    "StrataForConditionalGeneration",
    "StrataImageProcessor",
    "StrataModel",
    "StrataProcessor",
    "StrataVLConfig",
    "StrataVLModel",
    "StrataVisionConfig",
    "TieredCache",
    "UnsupportedModelError",
    "attach",
]
