"""A count of what this process has done, for whoever asks whether it still moves (jsae.runtime.watchdog)."""

_beats = 0


def beat() -> None:
    """This process has done a step, or asked whether it should stop."""
    global _beats
    _beats += 1


def beats() -> int:
    """How often `beat` was called."""
    return _beats
