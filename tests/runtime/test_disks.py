"""Disks that are full, have no locks, or refuse to be read just now; and what is damaged is moved aside."""

import errno
import fcntl
import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.data import locks
from jsae.runtime import artifacts, checkpoints, digests, disks, workdirs

HERE = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
STATE = {"w": jnp.arange(8.0)}


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints 1 and 2."""
    store = checkpoints.Checkpoints(tmp_path / "sae/checkpoints")
    for step in (1, 2):
        store.save(step, STATE)
    store.close()
    return tmp_path / "sae" / "checkpoints"


def refusing(error):
    def read(self, abstract, step):
        if step == 2:
            raise error
        return real(self, abstract, step)

    real = checkpoints.Checkpoints._read
    return read


REFUSED = [
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    PermissionError(errno.EACCES, "Permission denied"),
    MemoryError(),
    ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes"),
    ValueError("PERMISSION_DENIED: Error opening 'zarr' driver: [os_error_code='13']"),
    ValueError("UNKNOWN: Failed to read: Input/output error [os_error_code='5']"),
]


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: f"{type(error).__name__} {error}"[:40])
@pytest.mark.parametrize("step", [None, 2])
def test_a_checkpoint_that_cannot_be_read_just_now_is_no_damage(saved, monkeypatch, error, step):
    store = checkpoints.Checkpoints(saved)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_read", refusing(error))
        with pytest.raises(OSError, match=rf"checkpoint {saved}/2 could not be read: .*nothing was changed"):
            store.restore(checkpoints.abstract(STATE, HERE), step=step)
    assert store.restore(checkpoints.abstract(STATE, HERE))[0] == 2, "a minute later it is there"
    store.close()
    assert not (saved.parent / disks.ASIDE).exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's other futures
def test_what_is_damaged_is_moved_aside_and_not_deleted(saved, caplog):
    store = checkpoints.Checkpoints(saved)
    files = [path for path in (saved / "2/default").rglob("d/*") if path.is_file()]
    data = max(files, key=lambda path: path.stat().st_size)
    before = data.read_bytes()
    data.write_bytes(before[: len(before) // 2])
    assert store.restore(checkpoints.abstract(STATE, HERE))[0] == 1 and store.latest_step() == 1
    store.save(2, STATE)
    store.close()
    aside = saved.parent / disks.ASIDE / "checkpoints-2"
    assert (aside / data.relative_to(saved / "2")).exists() and str(aside.parent) in caplog.text
    gc.collect()  # the futures that tensorstore left behind complain here, where that is expected


def test_opening_for_reading_moves_nothing_of_a_study_that_may_be_anothers(tmp_path):
    store = checkpoints.Checkpoints(tmp_path / "c", best="accuracy")
    for step in (1, 2):
        store.save(step, STATE, {"accuracy": 0.5})
    store.close()
    (tmp_path / "c/2/metrics/metrics").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(digests.Damaged, match=rf"the metrics of checkpoint {tmp_path}/c/2 cannot be read"):
        checkpoints.Checkpoints(tmp_path / "c", read_only=True)
    assert sorted(tmp_path.rglob("*")) == before
    store = checkpoints.Checkpoints(tmp_path / "c", best="accuracy")
    assert store.restore(checkpoints.abstract(STATE, HERE))[0] == 1
    store.close()


def test_two_damaged_files_of_one_name_lie_beside_each_other(tmp_path):
    for content in ("a", "b"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train/x.npy").write_text(content)
        disks.move_aside(tmp_path / "train/x.npy", tmp_path)
    assert sorted(p.name for p in (tmp_path / disks.ASIDE).iterdir()) == ["train-x.npy", "train-x.npy-1"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_that_cannot_be_read_is_named_and_stays(tmp_path, monkeypatch, number):
    artifacts.write_array(tmp_path / "a.npy", np.zeros(3))

    def refuse(path):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.digests, "of_file", refuse)
        with pytest.raises(OSError, match=rf"cannot read {tmp_path}/a.npy: {os.strerror(number)}"):
            artifacts.read_array(tmp_path / "a.npy")
    assert artifacts.read_array(tmp_path / "a.npy").shape == (3,)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_worth_a_note_and_no_more(tmp_path, monkeypatch, notes, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    workdirs.lock(tmp_path).close()
    with locks.locked(tmp_path / "x.lock") as alone:
        assert not alone
    (note,) = notes.texts
    assert os.strerror(number) in note and str(tmp_path) in note


@pytest.mark.parametrize(
    "number, why", [(errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "no more")]
)
def test_a_full_disk_is_named_in_one_line_with_what_it_needs(saved, monkeypatch, number, why):
    def refuse(*args, **kwargs):  # as orbax says it: in another type, around another error
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise ValueError("Error writing\nand 400 lines") from error

    store = checkpoints.Checkpoints(saved)
    with monkeypatch.context() as patch:
        patch.setattr(store._manager, "save", refuse)
        with pytest.raises(disks.NoRoom) as caught:
            store.save(3, STATE)
    store.close()
    text = str(caught.value)
    for word in (f"the disk of {saved}", why, "a checkpoint takes 0.0 MiB", "--workdir", "Nothing that was"):
        assert word in text
    assert "\n" not in text


def test_the_reason_is_found_in_tensorstores_words():
    text = "RESOURCE_EXHAUSTED: Failed to write 13 bytes: No space left on device [os_error_code='28']"
    assert disks.why_full(ValueError(text)) == "is full"
    assert disks.why_full(ValueError("shape (28,) differs")) is None
    assert disks.why_refused(FileNotFoundError(errno.ENOENT, "gone")) is None, "what is gone is damage"
    assert disks.why_refused(ValueError("DATA_LOSS: checksum")) is None
