"""A small StrataLM learns what some modules of Python are for, and is asked about them.

python examples/train_and_chat.py     (a minute; stopped, it goes on from its checkpoint)
"""

import importlib
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import stratakv
from stratakv.hf import StrataForCausalLM
from stratakv.hf.tokenizer import learn_tokenizer
from stratakv.nn import StrataLM, TransformerConfig
from stratakv.train import TrainConfig, Trainer

NAMES = ("bisect", "csv", "heapq", "queue", "textwrap")
RUN = TrainConfig(steps=160, batch=8, length=64, lr=4e-3, warmup=10, optimizer="muon", eval_every=40)
HOME = Path("my-model")


def train() -> None:
    """Learns a tokenizer, then a model with four streams; saves both as transformers has them."""
    docs = [(importlib.import_module(name).__doc__ or "").strip().splitlines()[0] for name in NAMES]
    tokenizer = learn_tokenizer(docs, 320)
    turns = [
        [{"role": "user", "content": f"What is {name}?"}, {"role": "assistant", "content": doc}]
        for name, doc in zip(NAMES, docs, strict=True)
    ]
    drawn = random.Random(0).choices(turns, k=200)
    text = "".join(tokenizer.apply_chat_template(turn, tokenize=False) for turn in drawn)
    torch.manual_seed(RUN.seed)
    model = StrataLM(TransformerConfig(len(tokenizer), hidden_size=64, num_layers=2, num_heads=2))
    HOME.mkdir(exist_ok=True)
    trainer = Trainer(model, torch.tensor(tokenizer(text)["input_ids"]), RUN, HOME / "checkpoint.safetensors")
    trainer.resume()
    while not trainer.is_done:
        step = trainer.advance()
        if step.held_out is not None:
            print(f"update {step.step}: loss {step.loss:.3f}, held out {step.held_out:.3f}")
    StrataForCausalLM.from_strata_lm(model, eos_token_id=tokenizer.eos_token_id).save_pretrained(HOME)
    tokenizer.save_pretrained(HOME)


def chat(question: str) -> None:
    """Asks it, as any transformers model; `stratakv chat --model my-model` does too."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(HOME), AutoTokenizer.from_pretrained(HOME)
    turn, options = [{"role": "user", "content": question}], {"return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, **options)
    with stratakv.TieredCache.open(model, HOME / "sessions", ram="64MiB") as cache:
        ids = model.generate(**prompt, cache=cache, max_new_tokens=40, do_sample=False)
    print(question, "->", tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    train()
    chat("What is heapq?")
