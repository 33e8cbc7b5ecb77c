"""What lies in a folder: images, folders, links that lead nowhere, and what systems leave there."""

import collections
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".gif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
    ".jp2",
)
# Never images, never classes, beside all that begins with a dot: of each system.
_SYSTEM = {
    "macOS": ("__macosx", "network trash folder", "temporary items", "icon\r"),
    "Windows": ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "found.000"),
    "Windows drives": ("$recycle.bin", "system volume information", "msdownld.tmp"),
    "Synology": ("@eadir", "#recycle", "#snapshot", "@tmp", "@synoeastream", "@synoresource"),
    "QNAP": ("@recycle", "@recently-snapshot", "@transcode"),
    "Linux, NetApp": ("lost+found", "~snapshot", "aquota.user", "aquota.group"),
    "Python": ("__pycache__",),
}
_SHOWN = 10

LAYOUTS = """\
  DIR/CLASS/IMAGE               one folder per class; splits are drawn (data.val_share, data.test_share)
  DIR/{train,val,test}/CLASS/IMAGE    (or Training, valid, testing, ...)
  a folder in FGVC-Aircraft layout (variants.txt, images_variant_train.txt, ... and images/)"""


class FolderError(ValueError):
    """The folder cannot be read as a data set; the message names what is wrong in it."""


class LeftOut:
    """What is left out of a folder, and what else is worth a word."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self.notes, self._hidden, self._other = folder, [], collections.Counter(), []

    def hidden(self, name: str) -> bool:
        """Whether a name is a hidden or system one; then it is counted."""
        if is_hidden(name):
            self._hidden["._*" if name.startswith("._") else name] += 1
            return True
        return False

    def other(self, path: pathlib.Path) -> None:
        """Count a file that is no image."""
        self._other.append(path.relative_to(self._folder).as_posix())

    def counted(self) -> Iterator[str]:
        """Notes of how much is left out."""
        if self._other:
            n, some = len(self._other), listed(sorted(self._other))
            yield f"{self._folder}: {n} files are no images, left out: {some}"
        if self._hidden:
            n, some = self._hidden.total(), listed(f"{k} ({v})" for k, v in sorted(self._hidden.items()))
            yield f"{self._folder}: {n} hidden or system files and folders left out: {some}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (.DS_Store, ._x.jpg, .ipynb_checkpoints) or of a system's."""
    return name.startswith((".", "~$")) or any(name.casefold() in names for names in _SYSTEM.values())


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not is_hidden(name) and name.lower().endswith(SUFFIXES)


def leads_nowhere(path: pathlib.Path) -> bool:
    """Whether a path is a link whose target is not there."""
    return path.is_symlink() and not path.exists()


def _was_folder(path: pathlib.Path) -> bool:
    """Whether a path is a link to nowhere that has been a folder, as far as its name tells."""
    return path.suffix == "" and leads_nowhere(path)


def entries(folder: pathlib.Path) -> list[tuple[pathlib.Path, bool]]:
    """What lies in a folder, sorted, and whether it is a folder (one that a link has lost included).

    Raises FolderError if it cannot be read.
    """
    if leads_nowhere(folder):
        return []
    try:
        with os.scandir(folder) as scan:
            found = sorted((folder / entry.name, entry.is_dir()) for entry in scan)
    except OSError as error:
        raise FolderError(_unreadable(error)) from error
    return [(path, is_folder or _was_folder(path)) for path, is_folder in found]


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: the folder cannot be read ({error.strerror}); mend that, or move it away"


def folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a folder, sorted, without hidden and system ones."""
    return [path for path, is_folder in entries(folder) if is_folder and not is_hidden(path.name)]


def holds_images(folder: pathlib.Path) -> bool:
    """Whether an image lies anywhere below a folder, or may have where a link leads nowhere."""
    return leads_nowhere(folder) or any(True for _ in walk(folder, is_hidden))


def walk(
    folder: pathlib.Path,
    hidden: Callable[[str], bool],
    other: Callable[[pathlib.Path], None] = lambda path: None,
) -> Iterator[pathlib.Path]:
    """All image files below a folder, and links to nowhere that may have been folders of them.

    `hidden` says which names are left out, `other` is told of the files that are no images.
    """

    def stop(error: OSError) -> None:
        raise FolderError(_unreadable(error)) from error

    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        real = os.path.realpath(parent)
        if real in visited:  # a link back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in files:
            if hidden(name):
                continue
            path = pathlib.Path(parent, name)
            if is_image(name) or _was_folder(path):
                yield path
            else:
                other(path)


def listed(names: Iterable[str]) -> str:
    """The first ten names, and how many there are."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")
