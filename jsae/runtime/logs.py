"""Logs, metrics and progress.

`get_logger()` is the one logger; `to_file(workdir)` adds workdir/log.txt, `to_tensorboard()` sends the
numbers of every metrics.jsonl to TensorBoard as well. `note` is a warning that the end
of a run says again. `MetricsLog` appends rows to a metrics.jsonl and can be rewound to a restored step, so
that a resumed run leaves the same file as an uninterrupted one. Keys of times end in `_s` or `_per_s`; all
other values are reproducible. `progress` shows a bar on a terminal and a plain line every half minute
elsewhere.
"""

import contextlib
import json
import logging
import os
import sys
import time

import jax
import tqdm
from etils import epath

from jsae.runtime import artifacts, attempts, failpoints, heartbeat, paths

_LINE_EVERY_S = 30.0
_notes: list[str] = []
_tensorboard = None  # tensorboardX's SummaryWriter class, where it was asked for


def get_logger() -> logging.Logger:
    """The logger of all rooms."""
    return logging.getLogger("jsae")


def note(text: str) -> None:
    """Warn, once in a process, of something that the end of the run shall say again (`notes`)."""
    if text not in _notes:
        _notes.append(text)
        get_logger().warning("%s", text)


def notes() -> tuple[str, ...]:
    """What the end of the run says again."""
    return tuple(_notes)


def to_terminal() -> None:
    """Send the log to stderr: all of it from the writer process, warnings from the others."""
    logger = get_logger()
    if not any(getattr(h, "jsae_terminal", False) for h in logger.handlers):
        handler = _TqdmHandler()
        handler.jsae_terminal = True
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    logger.propagate = False


def to_file(workdir) -> None:
    """Append the log to workdir/log.txt (local workdirs, writer process)."""
    if paths.is_remote(workdir) or jax.process_index() != 0:
        return
    handler = _File(epath.Path(workdir) / "log.txt", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    get_logger().handlers.insert(0, handler)  # before the terminal, which may be gone


def to_tensorboard() -> None:
    """From now on write the rows of every metrics.jsonl to a folder tensorboard/ beside it, too.

    Raises RuntimeError that says what to install.
    """
    global _tensorboard
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise RuntimeError(
            "config.runtime.tensorboard=True needs tensorboardX: pip install 'jsae[tensorboard]'"
        ) from error
    _tensorboard = SummaryWriter


class _File(logging.FileHandler):
    """On a full disk a line is lost: the terminal has it, and logging's own traceback would bury it."""

    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _TqdmHandler(logging.Handler):
    """Writes above a progress bar instead of through it; nowhere, where stderr is closed or gone."""

    def emit(self, record):
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                tqdm.tqdm.write(self.format(record), file=sys.stderr)


def _is_on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


class MetricsLog:
    """Rows {"step": int, ...} appended to a metrics.jsonl by the writer process."""

    def __init__(self, path):
        self._path = epath.Path(path)
        self._rows, self._board, self._from_step = None, None, 0
        if jax.process_index() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Drop rows beyond `step` and a torn last line, as a restored run at `step` had them."""
        self._from_step = step
        if jax.process_index() != 0 or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # torn by a kill; everything behind it is beyond the last save
            if row["step"] <= step:
                kept.append(line)
        artifacts.write_bytes(self._path, "".join(line + "\n" for line in kept).encode())

    def write(self, step: int, values: dict) -> None:
        """Append one row; values are plain or 0-d array numbers, None where unknown."""
        if jax.process_index() != 0:
            return
        if _tensorboard is not None:
            self._to_board(int(step), values)
        row = {"step": int(step)} | {k: None if v is None else _number(v) for k, v in values.items()}
        line = json.dumps(row, allow_nan=False) + "\n"
        if paths.is_remote(self._path):  # object stores cannot append
            self._rows = (
                (self._path.read_text() if self._path.exists() else "") if self._rows is None else self._rows
            )
            self._rows += line
            self._path.write_text(self._rows)
            return
        with open(self._path, "a") as file:
            file.write(line)

    def _to_board(self, step: int, values: dict) -> None:
        if self._board is None:  # what a killed run wrote beyond the restored step is purged
            folder = os.fspath(self._path.parent / "tensorboard")
            self._board = _tensorboard(folder, purge_step=self._from_step + 1, flush_secs=30)
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, float(value), step)


def _number(value):
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_metrics(path) -> list[dict]:
    """The rows of a metrics.jsonl."""
    return [json.loads(line) for line in epath.Path(path).read_text().splitlines()]


class Progress:
    """Counts finished units; made by `progress`."""

    def __init__(self, total: int, start: int, label: str, unit: str):
        self._total, self._start, self._label, self._unit = total, start, label, unit
        self._done, self._began_s, self._said_s = start, time.monotonic(), time.monotonic()
        show = _is_on_terminal() and jax.process_index() == 0
        self._bar = (
            tqdm.tqdm(total=total, initial=start, desc=label, unit=unit, leave=False) if show else None
        )

    def update(self, n: int = 1, **shown) -> None:
        """`n` more units are done; `shown` are numbers to print beside the rate."""
        self._done += n
        heartbeat.beat()
        attempts.alive()
        failpoints.visit(f"progress/{self._label}")
        if self._bar is not None:
            self._bar.update(n)
            if shown:
                self._bar.set_postfix({k: f"{float(v):.4g}" for k, v in shown.items()}, refresh=False)
        now = time.monotonic()
        if now - self._said_s >= _LINE_EVERY_S:
            self._said_s = now
            rate = (self._done - self._start) / (now - self._began_s)
            left_s = (self._total - self._done) / rate if rate else float("inf")
            numbers = "".join(f", {k} {float(v):.4g}" for k, v in shown.items())
            get_logger().info(
                "%s: %d of %d %ss, %.3g %ss/s, %.0f s left%s",
                *(self._label, self._done, self._total, self._unit, rate, self._unit, left_s, numbers),
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def progress(total: int, *, start: int = 0, label: str = "", unit: str = "step"):
    """A `Progress` over `total` units of which `start` are already done."""
    counter = Progress(total, start, label, unit)
    try:
        yield counter
    finally:
        counter.close()
