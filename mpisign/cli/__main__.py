"""``python -m mpisign.cli``: the command, where its script is not on PATH."""

import sys

from mpisign.cli import main

if __name__ == "__main__":
    sys.exit(main())
