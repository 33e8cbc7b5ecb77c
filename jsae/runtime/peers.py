"""What the processes of one run tell each other outside of the collectives.

A collective is heard only by who takes part in it, and one whose partner is gone waits for ever. So each
process writes two words into the key-value store that jax's coordination service keeps in process 0, and a
thread of each reads what the others wrote, twice a second:

    jsae/INDEX/asked = NAME OF THE SIGNAL
    jsae/INDEX/left = EXIT CODE, and why

Process 0 takes the store with it when it ends, so it waits, for a while, until the others have left.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_EVERY_S = 0.5
_LAST_S = 5.0  # how long process 0 waits for the others
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
        self._news: set[tuple[int, str]] = set()
        self._exit_code = 0
        self._over = threading.Event()

    def start(self, hear: Callable[[int, str, str], None]) -> None:
        """From now on `hear(index, what, text)` is called, in a thread, once for each word of the others."""

        def listening() -> None:
            while not self._over.wait(_EVERY_S):
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
                hear(*word, text)
                self._news.add(word)

    def tell(self, what: str, text: str) -> None:
        """Write one word for the others, once. Waits for seconds at the most."""
        if what == "left":
            self._exit_code = int(text.split()[0])

        def write() -> None:
            with contextlib.suppress(Exception):  # written before, or process 0 is gone
                self._client.key_value_set(f"jsae/{self._index}/{what}", text)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        thread.join(_TELL_S)

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
