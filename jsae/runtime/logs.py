"""Logs, metrics and progress.

`get_logger()` is the one logger; `to_file(workdir)` adds workdir/log.txt. `note` is a warning that the end of
a run says again. `MetricsLog` appends rows to a metrics.jsonl and can be rewound to a restored step, so that
a resumed run leaves the same file as an uninterrupted one. Keys of times end in `_s` or `_per_s`; all other
values are reproducible. Stages get their `Progress` and `MetricsLog` from the `RunContext`.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import jax
import tqdm
from etils import epath

from jsae.runtime import artifacts, paths

_LINE_EVERY_S = 30.0
_NOTE = {"jsae_note": True}  # what marks a record of the log as a note


def get_logger() -> logging.Logger:
    """The logger of all rooms."""
    return logging.getLogger("jsae")


def note(text: str) -> None:
    """Warn of something that the end of the run shall say again (`Notes`)."""
    get_logger().warning("%s", text, extra=_NOTE)


class Notes(logging.Filter):
    """As a filter of the logger: collects the notes of a run in `texts`, and lets each pass once."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged; a note that was logged before is not."""
        if not getattr(record, "jsae_note", False):
            return True
        text = record.getMessage()
        if text in self.texts:
            return False
        self.texts.append(text)
        return True


def to_terminal() -> None:
    """Send the log to stderr: all of it from the writer process, warnings from the others."""
    logger = get_logger()
    if not any(getattr(h, "jsae_terminal", False) for h in logger.handlers):
        handler = _TqdmHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    logger.propagate = False


def to_file(workdir: paths.PathLike) -> None:
    """Append the log to workdir/log.txt (local workdirs, writer process)."""
    if paths.is_remote(workdir) or jax.process_index() != 0:
        return
    handler = _File(epath.Path(workdir) / "log.txt", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    get_logger().handlers.insert(0, handler)  # before the terminal, which may be gone


def tensorboard_writer() -> type:
    """The class that writes TensorBoard's events. Raises RuntimeError that says what to install."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise RuntimeError(
            "config.runtime.tensorboard=True needs tensorboardX: pip install 'jsae[tensorboard]'"
        ) from error
    return SummaryWriter


class _File(logging.FileHandler):
    """On a full disk a line is lost: the terminal has it, and logging's own traceback would bury it."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _TqdmHandler(logging.Handler):
    """Writes above a progress bar instead of through it; nowhere, where stderr is closed or gone."""

    jsae_terminal = True

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                tqdm.tqdm.write(self.format(record), file=sys.stderr)


def _is_on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


class MetricsLog:
    """Rows {"step": int, ...} appended to a metrics.jsonl by the writer process.

    Args:
      path: the file. tensorboard: tensorboardX's SummaryWriter class, to write the numbers to a folder
      tensorboard/ beside the
        file as well.
    """

    def __init__(self, path: paths.PathLike, tensorboard: type | None = None) -> None:
        self._path, self._tensorboard = epath.Path(path), tensorboard
        self._rows: str | None = None
        self._board: Any = None
        self._from_step = 0
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

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row; values are plain or 0-d array numbers, None where unknown."""
        if jax.process_index() != 0:
            return
        if self._tensorboard is not None:
            self._to_board(int(step), values)
        row = {"step": int(step)} | {k: None if v is None else _number(v) for k, v in values.items()}
        line = json.dumps(row, allow_nan=False) + "\n"
        if paths.is_remote(self._path):  # object stores cannot append
            if self._rows is None:
                self._rows = self._path.read_text() if self._path.exists() else ""
            self._rows += line
            self._path.write_text(self._rows)
            return
        with open(self._path, "a") as file:
            file.write(line)

    def _to_board(self, step: int, values: Mapping[str, Any]) -> None:
        if self._board is None and self._tensorboard:  # what lies beyond the restored step is purged
            folder = os.fspath(self._path.parent / "tensorboard")
            self._board = self._tensorboard(folder, purge_step=self._from_step + 1, flush_secs=30)
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, float(value), step)


def _number(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_metrics(path: paths.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl."""
    return [json.loads(line) for line in epath.Path(path).read_text().splitlines()]


class Progress:
    """Counts finished units, in a `with`: a bar on a terminal, a plain line every half minute elsewhere.

    Args:
      total, start: how many units there are, and how many of them are already done.
      label, unit: what the line calls them.
      on_update: called at each `update`.
    """

    def __init__(
        self, total: int, start: int, label: str, unit: str, on_update: Callable[[], None] = lambda: None
    ) -> None:
        self._total, self._start, self._label, self._unit = total, start, label, unit
        self._on_update = on_update
        self._done, self._began_s, self._said_s = start, time.monotonic(), time.monotonic()
        show = _is_on_terminal() and jax.process_index() == 0
        self._bar = (
            tqdm.tqdm(total=total, initial=start, desc=label, unit=unit, leave=False) if show else None
        )

    def update(self, n: int = 1, **shown: float) -> None:
        """`n` more units are done; `shown` are numbers to print beside the rate."""
        self._done += n
        self._on_update()
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
            counted = f"{self._label}: {self._done} of {self._total} {self._unit}s"
            get_logger().info("%s, %.3g %ss/s, %.0f s left%s", counted, rate, self._unit, left_s, numbers)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
