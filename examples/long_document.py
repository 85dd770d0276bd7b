"""A long document is read once: the next run, or the next question, goes on from its pages on disk.

python examples/long_document.py [MODEL]     (twice: the second run reads nothing)
"""

import inspect
import textwrap
import time

import torch

import stratakv
from demo_model import load

QUESTIONS = ("What is the serial number of the red telescope?", "What is the phone number of the bakery?")
CHUNK = 512


def document() -> str:
    """A module of Python, in which two facts are hidden."""
    source = inspect.getsource(textwrap)
    facts = "The serial number of the red telescope is 48213.", "The phone number of the bakery is 79564."
    return "\n\n".join([source[:5000], facts[0], source[5000:12000], facts[1], source[12000:]])


def main() -> None:
    """Reads what is new of the document, and answers."""
    model, tokenizer = load()
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": "DOCUMENT"}], tokenize=False, add_generation_prompt=True
    )
    before, after = template.split("DOCUMENT")
    context = tokenizer(f"{before}{document()}\n\n", return_tensors="pt").input_ids
    with (
        stratakv.attach(model),  # keys are kept without positions; a step reads the 1,024 tokens that matter
        stratakv.TieredCache.open(
            model, "sessions", name="document", ram="64MiB", disk_limit="2GiB", budget=1024
        ) as cache,
        torch.inference_mode(),
    ):
        start, known = time.perf_counter(), cache.get_seq_length()
        for position in range(known, context.shape[1] - 1, CHUNK):
            model(context[:, position : position + CHUNK], cache=cache, logits_to_keep=1)
            cache.save()  # a run that is stopped goes on from here
        read = cache.get_seq_length() - known
        print(f"{context.shape[1]} tokens, {read} of them read in {time.perf_counter() - start:.1f} s")
        for question in QUESTIONS:
            rest = tokenizer(f"Question: {question}{after}", return_tensors="pt", add_special_tokens=False)
            prompt = torch.cat([context, rest.input_ids], 1)
            with cache.fork() as asked:  # shares all pages; the document's session stays as it is
                ids = model.generate(prompt, cache=asked, max_new_tokens=24, do_sample=False)
            answer = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
            print(question, "->", answer.strip())


if __name__ == "__main__":
    main()
