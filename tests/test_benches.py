"""The figures' own machinery."""

from benches import figures, harness


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
