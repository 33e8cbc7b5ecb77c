"""What of a config a stage's result depends on: its sections, their digest, and how two of them differ.

A stage's digest is made of its sections of the config, the digest of the stage above it and, in a study's
first stage, the content of its data. Keys that cannot change a result (logging, saving, devices) are left
out, and so are places: paths stand for what lies there (jsae.runtime.contents).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jsae.runtime import contents

# What a stage's result depends on, besides the stage above it.
SECTIONS = {
    "classifier": ("seed", "data", "classifier"),
    "activations": ("data", "activations"),
    "sae": ("seed", "sae"),
    "analysis": ("seed", "analysis"),
    "ablation": ("seed", "ablation"),
    "report": ("report",),
}
# Keys inside those sections that change when and what is saved or said, or where things lie, but no result.
NO_RESULT = {
    "dir",
    "log_every_steps",
    "save_every_steps",
    "save_every_s",
    "keep_checkpoints",
    "steps_per_dispatch",
    "image_store",
    "remat",
    "workdir",
    "cache_dir",
}
_ADDED = (("tied", ""),)  # keys that came later: with this value a result is what it was without them
_BY_CONTENT = ("pretrained", "head", "embedding_workdir")  # paths whose content a result depends on


class ConfigMismatch(ValueError):
    """The stage in this workdir was made with another config."""


def plain(config: Any) -> dict[str, Any]:
    """The config as a nested dict."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def section(config: Any, name: str) -> dict[str, Any]:
    """The part of the config that the stage's result depends on, as a plain nested dict."""
    config = plain(config)
    picked = {}
    for key in SECTIONS[name]:
        value = config.get(key)
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if k not in NO_RESULT and (k, v) not in _ADDED}
            value |= {k: contents.of(k, value[k]) for k in _BY_CONTENT if k in value}
            if "variant" in value:  # of the sections of variants only that of the chosen one
                value = {k: v for k, v in value.items() if not isinstance(v, dict) or k == value["variant"]}
        picked[key] = value
    return json.loads(json.dumps(picked))  # tuples become lists, as they are when read back


def digest_of(section_config: Mapping[str, Any], upstream: Any) -> str:
    """16 hex digits of the sha256 over the sub-config and what it builds on: the digest above, or a list."""
    text = json.dumps([section_config, upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each key whose value in `wanted` is not that of `found`, two results of `section`.

    A path in `wanted` whose content is not known, for what lay there is gone, does not differ: it was needed
    once.
    """
    ours, theirs = _flatten(wanted), _flatten(found)
    for key in ours.keys() & theirs.keys():
        if key.endswith(_BY_CONTENT) and ours[key] and theirs[key] and not contents.is_known(ours[key]):
            ours[key] = theirs[key]
    return [
        f"config.{key}: {theirs.get(key, 'absent')!r} there, {ours.get(key, 'absent')!r} now"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, "absent") != theirs.get(key, "absent")
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
