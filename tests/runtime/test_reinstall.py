"""The handlers of signals come back after jax.distributed has put its own over them, where they were ours."""

import signal

from jsae.runtime import preemption


def test_handlers_are_put_back_only_where_they_were_installed(monkeypatch):
    calls, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(preemption, "install", lambda: calls.append(1))
    preemption.reinstall()
    assert calls == []
    try:
        signal.signal(signal.SIGTERM, preemption._on_signal)
        preemption.reinstall()
        assert calls == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
