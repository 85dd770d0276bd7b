"""An assistant that knows in its second session what it was told in the first.

python examples/assistant_memory.py [MODEL]
"""

from typing import Any

import torch

from demo_model import load
from stratakv import AssistantMemory

MONDAY = ("I live in Lisbon.", "My cat is called Miez.", "We chose Postgres over MySQL because of JSONB.")
FRIDAY = ("In which city do I live?", "What is my cat called?", "Which database did we choose?")


def answer(model: Any, tokenizer: Any, text: str) -> str:
    """The model's answer to one message."""
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = model.generate(**prompt, max_new_tokens=32, do_sample=False)
    said: str = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return said.strip()


def talk(session: str, texts: tuple[str, ...], model: Any, tokenizer: Any) -> None:
    """One conversation: what is known goes before each message, what is said is remembered."""
    print(f"-- {session}")
    with AssistantMemory.open("memory") as memory:  # a directory, private to its owner
        for text in texts:
            known = memory.context(text, user="ana", without_session=session)
            said = answer(model, tokenizer, f"{known.text}\n\n{text}" if known.text else text)
            print(f"> {text}\n{said}")
            # Durable when this returns; facts are taken out of it in the background.
            memory.observe(
                [{"role": "user", "content": text}, {"role": "assistant", "content": said}],
                user="ana",
                session=session,
            )
        memory.drain()


def main() -> None:
    """Two sessions; between them nothing is kept but the memory."""
    model, tokenizer = load()
    talk("monday", MONDAY, model, tokenizer)
    talk("friday", FRIDAY, model, tokenizer)


if __name__ == "__main__":
    main()
