"""What is derived from a user's memories outside the engine's files, and goes before a memory does.

Pages of keys and values of memories (`stratakv.KeptPages`) can be made again from their texts, as the
engine's own indexes can, and tell as much of them. So forgetting anything of a user first removes all that
was derived for this user, and nothing is derived while it goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = "pages"


class Beside:
    """The derived files of one directory of memories.

    Args:
        directory: the memories'; None where they are in a database, beside which there is nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._users: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._open: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)

    def directory_of(self, user: str) -> Path:
        """Where a user's pages are; it need not be there.

        Raises:
            ValueError: the memories are in a database.
        """
        if self._directory is None:
            raise ValueError(
                "pages are kept beside memories in files, and these are in a database: another process could "
                "forget a memory whose pages stay here"
            )
        digest = hashlib.sha256(b"stratakv pages\0" + user.encode()).hexdigest()
        return self._directory / FOLDER / digest[:32]

    @contextlib.contextmanager
    def deriving(self, user: str) -> Iterator[None]:
        """Nothing of the user is forgotten meanwhile."""
        with self._users[user]:
            yield

    @contextlib.contextmanager
    def forgetting(self, user: str) -> Iterator[None]:
        """Nothing of the user is derived now, nor meanwhile."""
        with self._users[user]:
            for let_go in list(self._open[user]):
                let_go()
            if self._directory is not None:
                directory = self.directory_of(user)
                if directory.exists():
                    shutil.rmtree(directory)
            yield

    def add(self, user: str, let_go: Callable[[], None]) -> None:
        """Is called before the user's derived files are removed."""
        self._open[user].append(let_go)

    def remove(self, user: str, let_go: Callable[[], None]) -> None:
        """Is no longer."""
        self._open[user].remove(let_go)
