"""``mpisign completion``: an interactive bash, in a terminal, completes what is typed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mpisign import cli


def test_bash_completes_commands_options_and_values(tmp_path):
    pytest.importorskip("shtab", reason='pip install "mpisign[completion]"')
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = tmp_path / "mpisign.bash"
    with open(script, "w") as out:
        command = [sys.executable, "-m", "mpisign", "completion", "bash"]
        subprocess.run(command, stdout=out, check=True, timeout=60)
    (tmp_path / "figures.json").touch()
    pid, terminal = pty.fork()
    if pid == 0:  # a shell without a person's settings
        os.chdir(tmp_path)
        os.environ.update(PS1="$ ", TERM="dumb", INPUTRC="/dev/null")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        type_in(terminal, f"source {script}\n", "$ ")
        for typed, completed in {
            "mpisign doc\t": "mpisign doctor ",
            "mpisign doctor --sec\t": "mpisign doctor --seconds ",
            "mpisign train --compression onebit\t": "--compression onebit",
            "mpisign completion fi\t": "mpisign completion fish ",
            "mpisign doctor --json fig\t": "--json figures.json ",
        }.items():
            type_in(terminal, typed, completed)
            type_in(terminal, "\x15\n", "$ ")  # Ctrl-U: forget the line
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def type_in(terminal, text, expected):
    """Writes to the terminal and reads until ``expected`` has come."""
    os.write(terminal, text.encode())
    seen, end = "", time.monotonic() + 20
    while expected not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"typed {text!r}, expected {expected!r}, saw {seen!r}"
        seen += os.read(terminal, 4096).decode(errors="replace")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell, capsys):
    pytest.importorskip("shtab", reason='pip install "mpisign[completion]"')
    assert cli.main(["completion", shell]) == 0
    assert "doctor" in capsys.readouterr().out


def test_without_shtab_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", "bash"])
    assert ended.value.code == 2
    assert 'pip install "mpisign[completion]"' in capsys.readouterr().err
