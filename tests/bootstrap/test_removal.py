"""A person at a real terminal is asked before something is ended; where nobody sits, nothing is asked."""

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ASK = """
import sys
from bootstrap import removal
from bootstrap.progress import Output
from config import loader
nodes = "[{name: h, host: 10.0.0.1, role: head}, {name: w, host: 10.0.0.2}]"
settings = loader.loads(f"cluster: c\\nssh: {{user: me}}\\nnodes: {nodes}\\n", "test")
said = removal.agreed(list(settings.workers), Output(sys.stdout, sys.stderr), yes="--yes" in sys.argv)
print("agreed" if said else "refused")
"""
ASK_FRESH = """
import os, sys
from dataclasses import replace
from bootstrap import removal
from bootstrap.progress import Output
from bootstrap.reach import Raylet
from bootstrap.survey import survey
from config import loader
settings = loader.loads("cluster: c\\nnodes: [{name: h, host: 127.0.0.1, role: head}]\\n", "test")
seen = replace(survey(settings, os.environ), raylets={"w": Raylet("w", 1, "ab", "", "", head=False)})
said = removal.fresh_agreed(seen, Output(sys.stdout, sys.stderr), yes="--yes" in sys.argv)
print("agreed" if said else "refused")
"""


def ask_on_a_terminal(answer: str, code: str = ASK) -> str:
    """What is shown, when a person types this to the question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        while select.select([terminal], [], [], 60)[0]:
            try:
                shown += terminal.read(4096)
            except OSError:  # the other side is closed
                break
            if shown.endswith(b"[y/N] "):
                terminal.write(answer.encode())
    assert process.wait(60) == 0
    return shown.decode()


@pytest.mark.parametrize(
    ("typed", "decision"), [("y\n", "agreed"), ("YES\n", "agreed"), ("n\n", "refused"), ("\n", "refused")]
)
def test_a_person_at_a_terminal_decides(typed: str, decision: str) -> None:
    shown = ask_on_a_terminal(typed)
    assert "No longer in the file: w (10.0.0.2)" in shown
    assert "Stop and remove?" in shown
    assert shown.rstrip().endswith(decision)


@pytest.mark.parametrize(("typed", "decision"), [("y\n", "agreed"), ("n\n", "refused")])
def test_who_begins_anew_is_told_what_ends_with_it(typed: str, decision: str) -> None:
    shown = ask_on_a_terminal(typed, ASK_FRESH)
    assert "Serve applications" in shown
    assert "are ended: w" in shown
    assert shown.rstrip().endswith(decision)


@pytest.mark.parametrize(("flags", "decision"), [((), "refused"), (("--yes",), "agreed")])
def test_where_nobody_sits_only_the_flag_decides(flags: tuple[str, ...], decision: str) -> None:
    argv = [sys.executable, "-c", ASK, *flags]
    done = subprocess.run(
        argv, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{decision}\n"
    assert ("start.py --yes" in done.stderr) is (decision == "refused")
