"""Reading ahead in a table that a loader mapped from a checkpoint, as `from_pretrained` does.

Which file it is says the system (`/proc/self/maps`, on Linux); elsewhere, and for tables in plain RAM,
nothing is read ahead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from stratakv._native import RowFile

MAPS = Path("/proc/self/maps")


class _Mapping(NamedTuple):
    """A part of this process's memory: addresses, and where in which file it begins."""

    start: int
    end: int
    offset: int
    inode: int
    path: str


class ReadAhead:
    """Of one table, which may be given other memory at any time. Copies of it look for themselves."""

    def __init__(self) -> None:
        self._address: int | None = None
        self._file: RowFile | None = None

    def file(self, table_ND: Tensor) -> RowFile | None:
        """The file that the rows' memory is mapped from; None where there is none, or it is not known."""
        if table_ND.device.type != "cpu" or not table_ND.is_contiguous():
            return None
        if self._address != table_ND.data_ptr():
            self._address, self._file = table_ND.data_ptr(), _file_behind(table_ND)
        return self._file

    def __reduce__(self) -> tuple[type[ReadAhead], tuple[()]]:
        return ReadAhead, ()


def _file_behind(table_ND: Tensor) -> RowFile | None:
    address, num_bytes = table_ND.data_ptr(), table_ND.nbytes
    mapping = _mapping_at(address)
    if mapping is None or not num_bytes or address + num_bytes > mapping.end:
        return None
    try:
        # The name may have been given to another file since.
        if os.stat(mapping.path).st_ino != mapping.inode:  # noqa: PTH116  # a name, as the system has it
            return None
        place = mapping.offset + address - mapping.start, len(table_ND)
        return RowFile(mapping.path, num_bytes // len(table_ND), part=place)
    except OSError:
        return None


def _mapping_at(address: int) -> _Mapping | None:
    """The mapping of a file that holds an address."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in fields[0].split("-"))
        if start <= address < end:
            # Memory that is no file's has inode 0.
            is_file = len(fields) == 6 and fields[4] != "0"
            return _Mapping(start, end, int(fields[2], 16), int(fields[4]), fields[5]) if is_file else None
    return None
