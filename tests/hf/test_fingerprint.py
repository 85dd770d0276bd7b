"""A fingerprint tells models apart that compute different keys and values, and no others."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stratakv.hf.fingerprint import model_identity, model_name, model_settings
from tests.hf.tiny_models import build

pytestmark = pytest.mark.hf


def test_other_weights_differ():
    model = build("llama")
    assert model_identity(model) == model_identity(copy.deepcopy(model))
    assert model_identity(model) != model_identity(build("llama", seed=1))
    assert model_identity(model) != model_identity(build("qwen2"))


def test_other_dtype_or_config_differ():
    model = build("llama")
    assert model_identity(model) != model_identity(copy.deepcopy(model).bfloat16())
    changed = copy.deepcopy(model)
    changed.config.rope_parameters["rope_theta"] = 5.0
    assert model_identity(model) != model_identity(changed)


def test_where_it_was_loaded_from_does_not_matter():
    model = copy.deepcopy(build("llama"))
    model.config._name_or_path = "/some/where/my-model"
    model.config.use_cache = False
    assert model_identity(model) == model_identity(build("llama"))
    assert model_name(model).startswith("LlamaForCausalLM my-model, 0.")


def test_same_in_a_new_process():
    code = (
        "from tests.hf.tiny_models import build; from stratakv.hf.fingerprint import model_identity;"
        "print(model_identity(build('llama')).hex())"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert run.stdout.strip() == model_identity(build("llama")).hex()


def test_settings():
    assert model_settings(build("llama"), page_tokens=16) == {
        "attention": "sdpa",
        "dtype": "float32",
        "key_rotation": "applied",
        "page_tokens": "16",
    }


def test_weights_that_are_not_in_memory():
    with torch.device("meta"):
        model = torch.nn.Linear(3, 3)
    assert len(model_identity(model)) == 32
