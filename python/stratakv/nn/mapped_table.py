"""`MappedTable`: an embedding in a file that is mapped into memory, for tables larger than RAM.

The system keeps in RAM what was used last, as far as there is room, and writes changes back. A row that is
prefetched is there when it is looked up.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stratakv._native import RowFile
from stratakv.sizes import format_bytes


class MappedRows:
    """(N, P, D) float32 in a scratch file that has no name, and goes with its last user; zeros at first.

    Args:
        num_rows: N.
        dim: D.
        directory: on the disk that is to hold it.
        num_planes: P, what is kept of a row: one read finds all of it.

    Attributes:
        planes: P times (N, D), the mapped file.

    Raises:
        OSError: the directory cannot be written to, or its disk is too full; `filename` is the directory.
    """

    def __init__(self, num_rows: int, dim: int, directory: Path, *, num_planes: int = 1) -> None:
        row_bytes = num_planes * dim * torch.float32.itemsize
        descriptor, name = tempfile.mkstemp(prefix="stratakv-table-", dir=directory)
        try:
            _reserve(descriptor, num_rows * row_bytes, directory)
            self._file = RowFile(name, row_bytes)
            mapped = mmap.mmap(descriptor, num_rows * row_bytes)
        finally:
            os.close(descriptor)
            # Windows keeps the name of an open file.
            with contextlib.suppress(PermissionError):
                Path(name).unlink()
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        values = torch.frombuffer(mapped, dtype=torch.float32).view(num_rows, num_planes, dim)
        self.planes = values.unbind(1)

    def prefetch(self, rows: Tensor) -> None:
        """Has these rows (int64, any shape) read in the background."""
        self._file.prefetch(rows.contiguous())


def _reserve(descriptor: int, size: int, directory: Path) -> None:
    """Makes the file so large, with its space on disk: a full disk is an error now, not a signal later."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
    except OSError as error:
        what = f"{error.strerror} for a table of {format_bytes(size)}"
        raise OSError(error.errno, what, str(directory)) from None


class MappedTable(nn.Embedding):
    """An `nn.Embedding` whose weight is a scratch file's. Its gradients are sparse.

    Args:
        num_rows: N.
        dim: D.
        directory: on the disk that is to hold the file.
        initial: (N, D) values to start with; None leaves zeros, for the caller to draw: one writing of a
            file, not two.

    Raises:
        OSError: see `MappedRows`.
    """

    def __init__(self, num_rows: int, dim: int, directory: Path, *, initial: Tensor | None = None) -> None:
        rows = MappedRows(num_rows, dim, directory)
        super().__init__(num_rows, dim, sparse=True, _weight=rows.planes[0])
        self._rows, self._directory = rows, directory
        if initial is not None:
            rows.planes[0].copy_(initial.detach())

    @classmethod
    def copy_of(cls, table: nn.Embedding, directory: Path) -> MappedTable:
        """The same rows, in a file.

        Raises:
            ValueError: a table on another device or of another dtype.
            OSError: see `MappedRows`.
        """
        weight = table.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise ValueError(
                f"a table on {weight.device} of {weight.dtype}: tables in files are float32 on the CPU; "
                "call model.cpu().float() before"
            )
        made = cls(table.num_embeddings, table.embedding_dim, directory, initial=weight)
        made.requires_grad_(weight.requires_grad)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> MappedTable:
        made = self.copy_of(self, self._directory)
        memo[id(self)] = made
        return made.train(self.training)

    def add_planes(self, count: int) -> tuple[Tensor, ...]:
        """Zeros like the weight, for an optimizer: in a new file, each row's beside the row, read with it.

        Raises:
            OSError: see `MappedRows`.
        """
        rows = MappedRows(self.num_embeddings, self.embedding_dim, self._directory, num_planes=1 + count)
        weight, *others = rows.planes
        weight.copy_(self.weight.detach())
        # The parameter stays the one that others know.
        self.weight.data = weight
        self._rows = rows
        return tuple(others)

    def prefetch(self, rows: Tensor) -> None:
        """Has these rows (int64, any shape) read in the background.

        Raises:
            ValueError: a row that the table does not have.
        """
        self._rows.prefetch(rows)
