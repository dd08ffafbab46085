"""``python -m mpisign``: the command."""

import sys

from mpisign.cli import main

if __name__ == "__main__":
    sys.exit(main())
