"""`python -m stratakv`: the same as the `stratakv` command."""

import sys

from stratakv.cli import main

if __name__ == "__main__":
    sys.exit(main())
