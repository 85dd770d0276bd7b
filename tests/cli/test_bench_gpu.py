"""`stratakv bench gpu`: what it says without a GPU, and that all it measures runs, here on the CPU."""

from __future__ import annotations

import io
import json

import pytest
import torch

from stratakv.cli import gpu_figures, main
from stratakv.cli.bench_gpu import measure_on
from stratakv.cli.errors import CommandError
from stratakv.cli.gpu_work import Sizes
from stratakv.cli.output import Output

CPU = torch.device("cpu")
SMALL = Sizes(
    contexts=(4096,), budget=256, chunk=70, heads=2, group=2, dim=32, copy_bytes=4096, matrix=64, repeats=2
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes with CUDA")
def test_without_a_gpu_it_says_so_and_is_no_failure(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "gpu"]) == 0
    assert capsys.readouterr().out.startswith("no GPU: ")
    assert main(["bench", "gpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"device": None, "figures": []}
    assert not list(tmp_path.iterdir())


def test_every_figure_is_measured_and_kept(tmp_path):
    stdout = io.StringIO()
    report = tmp_path / "figures.json"
    assert measure_on(CPU, SMALL, report, Output(stdout=stdout, stderr=io.StringIO())) == 0
    kept = json.loads(report.read_text())
    names = [figure["name"] for figure in kept["figures"]]
    assert gpu_figures.DEVICE_COPY in names
    assert sum(name.startswith("4K: ") for name in names) == 7
    assert len(set(names)) == len(names)
    for figure in kept["figures"]:
        assert len(figure["samples"]) == 2
        assert min(figure["samples"]) > 0
        assert figure["baseline"] in {None, *names}
        assert figure["name"] in stdout.getvalue()


def test_a_wrong_kernel_is_not_measured(tmp_path, monkeypatch):
    right = gpu_figures.reference.attend

    def wrong(*arguments):
        part = right(*arguments)
        return gpu_figures.reference.Partial(part.output * 1.01, part.log_sum)

    class Backend:
        attend, score, merge = wrong, gpu_figures.reference.score, gpu_figures.reference.merge

    monkeypatch.setattr(gpu_figures, "backend_for", lambda _: Backend)
    with pytest.raises(CommandError, match="a kernel is wrong on cpu"):
        measure_on(CPU, SMALL, tmp_path / "none.json", Output(stdout=io.StringIO(), stderr=io.StringIO()))
    assert not (tmp_path / "none.json").exists()
