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

_EVERY_S = 0.5
_LAST_S = 5.0  # how long process 0 waits for the others
_TELL_S = 5.0

_SIGNS = ("Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "oordination service")

_client, _index, _count = None, 0, 1
_news: set[tuple[int, str]] = set()
_exit_code = 0
_over = threading.Event()


def meet(client, index: int, count: int, hear) -> None:
    """Begin to listen; `hear(index, what, text)` is called, in a thread, once for each word of another.

    Args:
      client: has key_value_set(key, text) and key_value_dir_get(folder) -> [(key, text)], as jax's
        DistributedRuntimeClient.
      index, count: which of how many processes this is.
    """
    global _client, _index, _count
    _client, _index, _count = client, index, count
    if count < 2 or not hasattr(client, "key_value_dir_get"):
        return
    threading.Thread(target=_listen, args=(hear,), name="jsae-peers", daemon=True).start()
    atexit.register(_at_exit)


def are_there() -> bool:
    """Whether this process has met others."""
    return _client is not None and _count > 1


def _listen(hear) -> None:
    while not _over.wait(_EVERY_S):
        with contextlib.suppress(Exception):  # process 0 is gone: jax's own thread ends this process
            look(hear)


def look(hear) -> None:
    """Read once what the others wrote."""
    for key, text in _client.key_value_dir_get("jsae/"):
        _, index, what = key.split("/")
        word = int(index), what
        if word[0] != _index and word not in _news:
            hear(*word, text)
            _news.add(word)


def tell(what: str, text: str) -> None:
    """Write one word for the others, once; nothing without others. Waits for seconds at the most."""
    global _exit_code
    if not are_there():
        return
    if what == "left":
        _exit_code = int(text.split()[0])

    def write():
        with contextlib.suppress(Exception):  # written before, or process 0 is gone
            _client.key_value_set(f"jsae/{_index}/{what}", text)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(_TELL_S)


def explain(error: BaseException) -> str | None:
    """What to say of an error that a collective raises when a partner is gone; None for any other."""
    if not are_there() or not any(sign in str(error) for sign in _SIGNS):
        return None
    return (
        f"another process of this run has ended or cannot be reached; its own log says why. What was saved "
        f"stays: start the same command again ({str(error).strip().splitlines()[0]})"
    )


def wait_for_news(what: str, seconds: float) -> bool:
    """Whether another process has written the word, or does so within these seconds."""
    until = time.monotonic() + seconds
    while not any(word == what for _, word in _news):
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


def leave(code: int, why: str) -> None:
    """Tell the others that this process ends now; process 0 lets them end first."""
    tell("left", f"{code} {why}")
    if are_there() and _index == 0 and code:
        until = time.monotonic() + _LAST_S
        while sum(word == "left" for _, word in _news) < _count - 1 and time.monotonic() < until:
            time.sleep(0.05)


def _at_exit() -> None:
    """At a failure jax would wait in its own exit for processes that wait for this one."""
    if _exit_code:
        leave(_exit_code, "")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(_exit_code)
    _over.set()
