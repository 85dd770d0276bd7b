from __future__ import annotations

import subprocess
import sys

import pytest

from stratakv.cli import COMMANDS, main

from .conftest import environment, run_child


def test_help_lists_every_command_and_imports_no_torch():
    program = (
        "import sys\nfrom stratakv.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'stratakv._native'}"
        " & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"stratakv {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["ask", "only-a-question"], "question"),
        (["ask", "--ram", "lots", "a.txt", "q"], "lots"),
        (["ask", "--chunk", "0", "a.txt", "q"], "0"),
        (["demo", "--dtype", "int3"], "int3"),
        (["sessions"], "ACTION"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_runs_as_a_module_and_as_a_broken_pipe():
    assert run_child("--version").stdout.startswith("stratakv ")
    program = (
        "from stratakv.cli import main; import sys; sys.exit(main(['doctor', '--no-measure', '--json']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()  # the reader leaves before anything is written
    stderr = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(timeout=120) == 141, stderr
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr
