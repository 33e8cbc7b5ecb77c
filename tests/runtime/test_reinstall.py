"""Our signal handlers come back after jax has put its own over them; where none were, none appear."""

import signal
import subprocess
import sys

from jsae.runtime import preemption
from jsae.runtime.context import RunContext

PROGRAM = """
import signal
from jsae.runtime import preemption
signals = preemption.install()
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as jax.distributed.initialize does
assert preemption.install() is signals and signal.getsignal(signal.SIGTERM) == signals._on_signal
"""


def test_handlers_are_put_back_and_there_is_one_object():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_installed_where_nobody_asked(monkeypatch):
    monkeypatch.setattr(preemption, "_installed", None)
    before = signal.getsignal(signal.SIGTERM)
    assert preemption.installed() is None and RunContext().signals is None
    with preemption.saving():
        preemption.hold_for(object())
    assert signal.getsignal(signal.SIGTERM) is before
