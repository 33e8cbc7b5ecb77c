"""What the processes of one run tell each other outside of the collectives, and where they agree to stop.

A collective is heard only by who takes part in it, holds every process up until all are there, and waits for
ever where a partner is gone. So each process writes words into the key-value store that jax's coordination
service keeps in process 0, and a thread of each reads what the others wrote, twice a second:

    jsae/INDEX/asked = NAME OF THE SIGNAL
    jsae/INDEX/polls = HOW OFTEN IT HAS ASKED WHETHER TO STOP
    jsae/INDEX/done = 0, its run has come to its end
    jsae/INDEX/left = EXIT CODE, and why

Loops that all processes go through together ask `is_stop_due` at the same places, which costs no message.
Once a process was asked to stop, every process halts at its next poll and its thread writes how many it has
behind it, also where the main thread is busy; all stop at the first poll that none of them has behind it.

Process 0 takes the store with it when it ends, so it waits, for a while, until the others have left.
"""

import atexit
import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_EVERY_S = 0.5
_LAST_S = 15.0  # how long process 0 waits for the others, on a busy machine
_TELL_S = 5.0

_SIGNS = ("Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "oordination service")


class Peers:
    """The other processes of a run, as this one hears of them.

    Args:
      client: has key_value_set(key, text) and key_value_dir_get(folder) -> [(key, text)], as jax's
        DistributedRuntimeClient.
      index, count: which of how many processes this is.
    """

    def __init__(self, client: Any, index: int, count: int) -> None:
        self._client, self._index, self._count = client, index, count
        self._news: dict[tuple[int, str], str] = {}  # of the others
        self._exit_code = 0
        self._over = threading.Event()
        self._written: dict[str, threading.Event] = {}  # by this process
        self._words: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._polls = threading.Condition()
        self._n_polls, self._stop_at = 0, 0
        self._halts = False
        # From Python 3.12 on no thread can be started while the interpreter ends
        threading.Thread(target=self._write, name="jsae-peers-write", daemon=True).start()

    def start(self, hear: Callable[[int, str, str], None]) -> None:
        """From now on `hear(index, what, text)` is called, in a thread, once for each time that another
        process was asked to stop or has left."""

        def listening() -> None:
            while not self._over.wait(_EVERY_S / 10 if self._halts else _EVERY_S):
                with contextlib.suppress(Exception):  # process 0 is gone: jax's own thread ends this process
                    self.read(hear)

        threading.Thread(target=listening, name="jsae-peers", daemon=True).start()
        atexit.register(self._at_exit)

    def read(self, hear: Callable[[int, str, str], None]) -> None:
        """Read once what the others wrote."""
        for key, text in self._client.key_value_dir_get("jsae/"):
            _, index, what = key.split("/")
            word = int(index), what
            if word[0] != self._index and word not in self._news:
                if what in ("asked", "left"):
                    hear(*word, text)
                self._news[word] = text
        self._agree()

    def is_stop_due(self, is_asked: bool) -> bool:
        """Whether all processes stop at this poll, a place to which all come equally often.

        is_asked: this process was asked to stop. Waits only where one was, for the others' threads.
        """
        with self._polls:
            if is_asked:
                self._halt()
            while self._halts:
                self._polls.wait(0.1)
            self._n_polls += 1
            return 0 < self._stop_at <= self._n_polls

    def _halt(self) -> None:
        """No poll from here on, until all know how many the others have behind them."""
        if not self._halts and not self._stop_at:
            self._halts = True
            self._send("polls", str(self._n_polls))

    def _agree(self) -> None:
        with self._polls:
            if any(what in ("asked", "polls") for _, what in self._news):
                self._halt()
            behind = {index: int(n) for (index, what), n in self._news.items() if what in ("polls", "done")}
            if self._halts and len(behind) == self._count - 1:
                self._stop_at = 1 + max(self._n_polls, *behind.values())
                self._halts = False
                self._polls.notify_all()

    def tell(self, what: str, text: str) -> None:
        """Write one word for the others, once. Waits for seconds at the most."""
        if what == "left":
            self._exit_code = int(text.split()[0])
        if what == "asked":
            with self._polls:
                self._halt()
        self._send(what, text).wait(_TELL_S)

    def _send(self, what: str, text: str) -> threading.Event:
        if what not in self._written:
            self._written[what] = threading.Event()
            self._words.put((what, text))
        return self._written[what]

    def _write(self) -> None:
        while True:
            what, text = self._words.get()
            with contextlib.suppress(Exception):  # process 0 is gone
                self._client.key_value_set(f"jsae/{self._index}/{what}", text)
            self._written[what].set()

    def explain(self, error: BaseException) -> str | None:
        """What to say of an error that a collective raises when a partner is gone; None for any other."""
        if not any(sign in str(error) for sign in _SIGNS):
            return None
        return (
            "another process of this run has ended or cannot be reached; its own log says why. What was "
            f"saved stays: start the same command again ({str(error).strip().splitlines()[0]})"
        )

    def wait_for_news(self, what: str, seconds: float) -> bool:
        """Whether another process has written the word, or does so within these seconds."""
        until = time.monotonic() + seconds
        while not any(word == what for _, word in self._news):
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        return True

    def leave(self, code: int, why: str) -> None:
        """Tell the others that this process ends now; process 0 lets them end first."""
        self.tell("left", f"{code} {why}")
        if self._index == 0 and code:
            until = time.monotonic() + _LAST_S
            while (
                sum(word == "left" for _, word in self._news) < self._count - 1 and time.monotonic() < until
            ):
                time.sleep(0.05)

    def _at_exit(self) -> None:
        """At a failure jax would wait in its own exit for processes that wait for this one."""
        if self._exit_code:
            self.leave(self._exit_code, "")
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(self._exit_code)
        self._over.set()
        self.tell("done", "0")
