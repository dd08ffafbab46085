"""Runs the Python blocks of pages on every rank: run_pages.py PAGE ... See tests/page_blocks.py."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from page_blocks import ROOT, Block, blocks, setting


def missing(page: Path) -> list[str]:
    needs = [name.strip() for name in setting(page, "needs").split(",") if name.strip()]
    return [name for name in needs if importlib.util.find_spec(name) is None]


def run(block: Block, names: dict[str, object]) -> None:
    """Executes a block; an error ends the job and says where in the page it was raised."""
    file = str(block.page.relative_to(ROOT))
    try:
        code = compile("\n" * (block.line - 1) + block.code, file, "exec", dont_inherit=True)
        exec(code, names)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == file), block.line)
        print(f"{file}:{line}: {type(error).__name__}: {error}", flush=True)
        raise


def main() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        import torch.distributed as dist

        dist.init_process_group("gloo")
    import torch

    warnings.simplefilter("ignore")
    home = os.getcwd()
    for name in sys.argv[1:]:
        page, start = ROOT / name, time.monotonic()
        names: dict[str, object] = {"__name__": "__page__"}
        done = 0
        torch.manual_seed(0)  # models that a page makes start equal
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for block in blocks(page):
                if block.kind in ("python", "run") and not block.not_run:
                    run(block, names)
                    done += block.kind == "python"
            os.chdir(home)
        print(f"ran {done} blocks of {name} in {time.monotonic() - start:.1f} s", flush=True)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
