"""What a path in a config stands for in a stage's digest: the content of what lies there, not its place."""

import functools
import hashlib
import os

from jsae.runtime import artifacts, paths

_PREFIX = "sha256:"
_BESIDE = ("config.json", "preprocessor_config.json")  # say how images are prepared for pretrained weights


def of(key: str, path: str) -> str:
    """The content of a path, "sha256:..."; the path itself where nothing is there (any more).

    Args:
      key: "pretrained", a weights file or the folder of one, "head", a file, or "embedding_workdir", another
        study.
      path: "" for none.
    """
    if not path:
        return ""
    if key == "embedding_workdir":
        manifest = paths.resolve(path) / "classifier" / "manifest.json"
        return _PREFIX + artifacts.read_json(manifest)["digest"] if manifest.exists() else path
    path = paths.absolute(path)
    if os.path.isdir(path):
        path = os.path.join(path, "model.safetensors")
    if not os.path.exists(path):
        return path
    files = (path, *(os.path.join(os.path.dirname(path), name) for name in _BESIDE))
    return _PREFIX + _of_files(tuple((file, *_stamp(file)) for file in files if os.path.exists(file)))


def is_known(content: object) -> bool:
    """Whether this is a content, and not the path of something that is gone."""
    return isinstance(content, str) and content.startswith(_PREFIX)


def _stamp(file: str) -> tuple:
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@functools.lru_cache(maxsize=16)
def _of_files(files: tuple) -> str:
    digest = hashlib.sha256()
    for file, *_ in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
