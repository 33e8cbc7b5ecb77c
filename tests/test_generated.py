"""Generated inputs: overrides of a config, names of classes, shapes of a store."""

import json
import re
import string

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import demo
from jsae.activations import store
from jsae.runtime import artifacts, stage_config, stages
from launch import mistyped


def keys_of(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# files are written, so there is no deadline; fewer examples than usual
SOME = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
CONFIG = demo.get_config()
KEYS = dict(keys_of(CONFIG))
WORDS = st.text(string.ascii_letters + string.digits + "_.-/ äß", min_size=1, max_size=12)
VALUES = {
    bool: st.booleans(),
    int: st.integers(-(10**9), 10**9),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: WORDS,
    tuple: st.lists(st.integers(0, 99), max_size=4).map(tuple),
}


@SOME
@given(st.sampled_from(sorted(KEYS)), st.data())
def test_an_override_changes_the_digests_of_its_stages_and_of_no_other(key, data):
    value = data.draw(VALUES[type(KEYS[key])])
    config = demo.get_config()
    config.update_from_flattened_dict({key: value})
    changed = value != KEYS[key]
    section, _, name = key.partition(".")
    for stage in stages.STAGES:
        before, after = (stages.section(c, stage) for c in (CONFIG, config))
        assert json.loads(json.dumps(after)) == after
        depends = section in stage_config.SECTIONS[stage] and name.split(".")[0] not in stage_config.NO_RESULT
        if section == "sae" and "." in name:  # a setting of a variant
            depends = depends and name.split(".")[0] == config.sae.variant
        same = stages.digest_of(before, "up") == stages.digest_of(after, "up")
        assert same == (not (changed and depends)), (key, value, stage)


@SOME
@given(WORDS.filter(lambda word: "=" not in word))
def test_a_key_that_is_none_is_told_its_neighbours(word):
    said = mistyped.explain(["x", "--config=configs/demo.py", f"--config.sae.{word}=1"])
    if word in CONFIG.sae:
        assert said is None
    else:
        first = word.split(".")[0]
        assert re.search(rf"has no {re.escape(repr(first))};.* its keys are", said) or "it is a value" in said


NAMES = st.lists(
    st.text(min_size=1, max_size=20).filter(str.isprintable), min_size=1, max_size=5, unique=True
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


@SOME
@given(NAMES)
def test_names_of_classes_come_back_from_tables_and_manifests_as_they_were(folder, names):
    artifacts.write_table(folder / "t.parquet", pa.table({"class_name": names}), {"names": names})
    read = artifacts.read_table(folder / "t.parquet")
    assert read["class_name"].to_pylist() == names
    assert json.loads(read.schema.metadata[artifacts.MANIFEST_KEY]) == {"names": names}
    artifacts.write_json(folder / "m.json", {"class_names": names}, checked=True)
    assert artifacts.read_json(folder / "m.json")["class_names"] == names


@SOME
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    st.sampled_from(store.DTYPES),
    st.integers(1, 9),
    st.data(),
)
def test_a_store_of_any_shape_reads_as_one_array(folder, sizes, shape, dtype, batch_size, data):
    whole = np.arange(sum(sizes) * np.prod(shape), dtype=np.float32).reshape(-1, *shape)
    stored, start_at = store.to_stored(whole, dtype), 0
    for i, n in enumerate(sizes):
        artifacts.write_array(folder / store.shard_name(i), stored[start_at : start_at + n])
        start_at += n
    artifacts.write_array(folder / "labels.npy", np.zeros(len(whole), np.int32))
    manifest = {"grid": shape[:2], "n_channels": shape[2], "n_images": sum(sizes), "dtype": dtype}
    opened = store.ActivationStore(folder, manifest | {"shards": sizes})
    whole = store.from_stored(stored, dtype)
    first = data.draw(st.integers(0, len(whole)))
    last = data.draw(st.integers(first, len(whole)))
    np.testing.assert_array_equal(opened.read(first, last), whole[first:last])
    rows = [batch.acts[batch.mask > 0] for batch in opened.batches(batch_size)]
    np.testing.assert_array_equal(np.concatenate(rows), whole)
