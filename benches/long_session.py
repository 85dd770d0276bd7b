"""Resumes a session in a process of its own and decodes: prints one JSON line, for `bench_million.py`.

python -m benches.long_session DIRECTORY NAME RAM BUDGET STEPS COLD

With COLD=1 the system's cache of the files is dropped first. Seconds from opening the directory, the model
being loaded, to the first token; and those of each token after it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def drop_from_page_cache(directory: Path) -> None:
    """Asks the system to forget the contents of all files."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    ram, budget, steps, cold = map(int, sys.argv[3:7])

    from stratakv.cli.engine import Driver, Interrupt, peak_rss_bytes
    from stratakv.cli.models import find_model, give_large_blocks_back, load
    from stratakv.cli.output import Output
    from stratakv.cli.storage import open_selecting, saved_ids

    give_large_blocks_back()
    out = Output(json_mode=True)
    loaded = load(find_model(None))
    ids = saved_ids(str(directory), name, ram=ram)
    if cold:
        drop_from_page_cache(directory)
    start = time.perf_counter()
    with (
        open_selecting(loaded.model, str(directory), budget=budget, out=out, ram=ram, name=name) as cache,
        Interrupt() as interrupt,
    ):
        cache.match(ids)
        driver = Driver(loaded, cache, interrupt=interrupt, out=out, show=False)
        logits_V = driver.prefill(ids, quiet=True).logits_V
        first = time.perf_counter() - start
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            logits_V = driver.step([int(logits_V.argmax())])
            seconds.append(time.perf_counter() - begin)
        read = cache.stats()["cache"].get("read_tokens")
    report = {"tokens": len(ids), "first": first, "seconds": seconds, "read_tokens": read}
    print(json.dumps({**report, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
