"""Scripts in turn, in one job: several.py SCRIPT [ARGUMENT ...] [+ SCRIPT ...].

A script's name is a path, or one of this folder.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

jobs: list[list[str]] = [[]]
for word in sys.argv[1:]:
    if word == "+":
        jobs.append([])
    else:
        jobs[-1].append(word)
for job in jobs:
    script = str(Path(__file__).parent / job[0])
    sys.argv = [script, *job[1:]]
    runpy.run_path(script, run_name="__main__")
