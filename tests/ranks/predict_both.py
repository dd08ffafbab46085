"""mpisign predict, then mpisign bench predict, by the ranks of one job; writes into a folder."""

import sys
from pathlib import Path

from mpisign import cli

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    predict = ["predict", "--model", "100k", "--ranks", "2,4", "--ranks-per-node", "2"]
    bench = ["bench", "predict", "--sizes", "20k", "--repeat", "1", "--plot", folder / "b.png"]
    for name, words in (("predict", predict), ("bench", bench)):
        status = cli.main([*words, "--json", folder / f"{name}.json"])
        assert status == 0, (name, status)
