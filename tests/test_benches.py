"""The figures' own machinery."""

import json

from benches import figures, harness


def test_a_figure_without_a_target_is_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "FIGURES", {})
    monkeypatch.setattr(figures, "FIGURES", harness.FIGURES)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "FIGURES_FILE", tmp_path / "figures.json")

    @harness.figure("one", "a figure", unit="s", target=None, peer="none", limit="none")
    def one():
        return harness.Result([3.0])

    assert figures.measure("one")
    assert capsys.readouterr().out == "one: 3 s (3 to 3), no target\n"
    entry = json.loads((tmp_path / "figures.json").read_text())["one"]
    assert (entry["target"], entry["holds"]) == ("reported", True)


def test_what_cannot_be_measured_is_not_recorded(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "FIGURES", {})
    monkeypatch.setattr(figures, "FIGURES", harness.FIGURES)
    monkeypatch.setattr(harness, "FIGURES_FILE", tmp_path / "figures.json")

    @harness.figure("one", "a figure", unit="s", target=1, peer="none", limit="none")
    def one():
        raise harness.NotMeasurableHereError("needs a quantum computer")

    assert figures.measure("one")
    assert capsys.readouterr().out == "one: not measurable here: needs a quantum computer\n"
    assert not (tmp_path / "figures.json").exists()
