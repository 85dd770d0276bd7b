"""For tests: slow oracles and the table of tolerances. Nothing here is needed at run time."""

from stratakv.testing.tolerances import TOLERANCES, Tolerance, assert_close

__all__ = ["TOLERANCES", "Tolerance", "assert_close"]
