"""Arguments that several commands share, and the types they are read with."""

from __future__ import annotations

import argparse

from stratakv import sizes

__all__ = [
    "add_budget_option",
    "add_decoding_options",
    "add_device_options",
    "add_directory_option",
    "add_json_option",
    "add_look_option",
    "add_model_options",
    "add_progress_option",
    "add_tier_options",
    "budget",
    "name",
    "natural",
    "number",
    "positive",
    "ram_size",
    "size",
    "whole",
]

DEFAULT_DIRECTORY = "sessions"
DEFAULT_BUDGET = 2048
LEAST_BUDGET = 256
LEAST_RAM_BYTES = 64 << 10


def size(text: str) -> int:
    """A size such as `64MiB` in bytes, for argparse."""
    try:
        return sizes.parse_bytes(text, name="")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def ram_size(text: str) -> int:
    """As `size`, of what the engine can work with."""
    try:
        return sizes.parse_bytes(text, name="", minimum=LEAST_RAM_BYTES)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str) -> int:
    """A whole number, for argparse."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """A number, for argparse."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def name(text: str) -> str:
    """A name of somebody or something, for argparse."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a name")
    return text


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def budget(text: str) -> int | None:
    """A number of tokens, or `all`, for argparse."""
    if text == "all":
        return None
    try:
        tokens = int(text)
    except ValueError:
        tokens = 0
    if tokens < LEAST_BUDGET:
        raise argparse.ArgumentTypeError(
            f"{text!r}: accepted are a whole number of tokens from {LEAST_BUDGET} on, and all"
        )
    return tokens


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="write the result as JSON")


def add_progress_option(parser: argparse.ArgumentParser) -> None:
    """`--progress` and `--no-progress`; None means on a terminal only."""
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show progress on stderr (default: on a terminal only)",
    )


def add_directory_option(parser: argparse.ArgumentParser, default: str | None = DEFAULT_DIRECTORY) -> None:
    """`--directory`."""
    parser.add_argument(
        "--directory",
        metavar="DIR",
        default=default,
        help="where sessions are kept" + (" (default: %(default)s)" if default else ""),
    )


def add_tier_options(parser: argparse.ArgumentParser, *, ram: str) -> None:
    """`--ram` and `--disk-limit`."""
    parser.add_argument(
        "--ram",
        type=ram_size,
        default=ram,
        metavar="SIZE",
        help="limit of the KV cache in RAM, such as 64MiB or 4GiB (default: %(default)s)",
    )
    parser.add_argument(
        "--disk-limit",
        type=size,
        default=None,
        metavar="SIZE",
        help="limit of the directory on disk; the least valuable sessions go first (default: none)",
    )


def add_budget_option(parser: argparse.ArgumentParser) -> None:
    """`--budget`; None reads everything."""
    parser.add_argument(
        "--budget",
        type=budget,
        default=DEFAULT_BUDGET,
        metavar="TOKENS",
        help="tokens of a long text that each step reads, the most relevant ones; all reads everything, "
        "as older sessions do (default: %(default)s)",
    )


def add_look_option(parser: argparse.ArgumentParser) -> None:
    """`--look` and `--no-look`."""
    parser.add_argument(
        "--look",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="where a text is longer than the model was trained on, go over the question twice: to find the "
        "places that answer it, then to read them (default: --look)",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--dtype` and `--chunk`."""
    parser.add_argument(
        "--model",
        metavar="PATH",
        default=None,
        help="a Hugging Face model directory, a .gguf file, or the name of a model already downloaded "
        "(default: the demo's SmolLM2-135M-Instruct)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="arithmetic of the model; auto takes bfloat16 where the CPU multiplies it natively",
    )
    parser.add_argument(
        "--chunk",
        type=positive,
        default=512,
        metavar="TOKENS",
        help="tokens per step of the prefill (default: %(default)s)",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--hot`; `stratakv.cli.devices` says what they mean on a machine."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="where the model runs: auto (a GPU with CUDA if there is one), cpu, cuda, cuda:N or mps "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--hot",
        type=size,
        default=None,
        metavar="SIZE",
        help="on a GPU: bytes of its memory, such as 4GiB, for the pages that are read; without it all that "
        "is attended to is copied there each time",
    )


def add_decoding_options(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """`--max-new-tokens`."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=max_new_tokens,
        metavar="N",
        help="stop the answer after so many tokens (default: %(default)s)",
    )
