"""The table beside ViSAEBench: what its passes keep, both protocols, unknown classes, the markdown."""

import dataclasses

import numpy as np
import pytest

from jsae.experiments import visaebench
from jsae.metrics import visaebench as formulas
from jsae.runtime.context import RunContext
from jsae.tables import documentation
from tests.ablation.toy import reduce
from tests.analysis import toy


@dataclasses.dataclass
class Scaled(toy.Store):
    scale: float = 2.0


def store(seed, n=72) -> Scaled:
    made = toy.store(seed, n, grid=(4, 4), n_classes=5)
    return Scaled(made.acts, made.labels, made.class_names)


@pytest.fixture(scope="module")
def measured():
    """(study, rows) of a small SAE; the test split has images of unknown class."""
    stores = {"train": store(0), "test": store(1)}
    stores["test"].labels[:6] = -1
    study = toy.Study(toy.sae(12), stores)
    levels = {"family": np.array([0, 0, 1, 1, -1])}
    return study, visaebench.measure(study, study.sae, levels, 25, RunContext())


def test_what_a_pass_keeps_of_an_image():
    made, sae = store(3, n=11), toy.sae(12)
    pool = visaebench.Pool(made.mean, made.scale)
    codes, raw, recon = reduce(pool, sae, made.acts, size=4)
    feats = np.asarray(sae.encode(made.acts))
    np.testing.assert_allclose(codes, feats.max((1, 2)) / 2, rtol=1e-5)
    np.testing.assert_allclose(raw, (made.acts.mean((1, 2)) - made.mean) / 2, atol=1e-5)
    np.testing.assert_allclose(recon, (np.asarray(sae.decode(feats)).mean((1, 2)) - made.mean) / 2, atol=1e-5)
    value, counted = reduce(visaebench.MeasureMoransI(made.scale), sae, made.acts, size=4)
    each, counts = (np.asarray(part) for part in formulas.morans_i(feats / 2))
    np.testing.assert_array_equal(counted, counts.sum(0))
    assert counted.max() > 1
    np.testing.assert_allclose(
        value, np.where(counts, each, 0).sum(0) / np.maximum(counts.sum(0), 1), atol=1e-5
    )


def test_both_protocols_stand_in_the_table(measured):
    _, rows = measured
    table = visaebench.TABLE.of_rows({"dictionary": "sae"} | row for row in rows)
    assert all(documentation(table).values())
    found = {(row["metric"], row["protocol"], row["k"]): row for row in rows}
    assert found["sparse_probing", "train_test", None]["n"] == 66, "six images are of unknown class"
    assert found["sparse_probing", "package", None]["n"] == 14, "a fifth of them"
    for protocol in ("package", "train_test"):
        accuracies = {k: found["sparse_probing_accuracy", protocol, k]["value"] for k in (1, 5, 10)}
        area = formulas.normalised_area(accuracies)
        assert found["sparse_probing", protocol, None]["value"] == area
        raw, recon, kept = (
            found[name, protocol, None]["value"]
            for name in ("probe_raw", "probe_reconstructed", "preservation")
        )
        assert kept == recon / raw and raw > 0.4
        pairs = found["absorption", protocol, None]
        assert (pairs["level"], pairs["n"]) == ("family", 4), "a class of no family has no siblings"


def test_train_test_fits_and_ranks_on_train(measured):
    study, rows = measured
    stores = study.stores | {"train": dataclasses.replace(study.stores["train"])}
    stores["train"].labels = np.random.default_rng(0).permutation(stores["train"].labels)
    shuffled = visaebench.measure(toy.Study(study.sae, stores), study.sae, {}, 25, RunContext())
    value = lambda rows, protocol: next(  # noqa: E731
        row["value"] for row in rows if (row["metric"], row["protocol"]) == ("probe_raw", protocol)
    )
    assert value(rows, "package") == value(shuffled, "package")
    assert value(shuffled, "train_test") < value(rows, "train_test") - 0.2


def test_one_class_is_nothing_to_probe(measured):
    study, _ = measured
    one = dataclasses.replace(study.stores["train"], labels=np.zeros(72, np.int32))
    with pytest.raises(ValueError, match="two classes or more; those of train"):
        visaebench.measure(toy.Study(study.sae, {"train": one}), study.sae, {}, 25, RunContext())


def test_the_markdown_has_a_column_a_dictionary():
    row = {"metric": "absorption", "protocol": "package", "k": None, "level": "family", "value": 0.25, "n": 4}
    other = row | {"metric": "sparse_probing_accuracy", "k": 5, "level": None}
    rows = [{"dictionary": "sae"} | row, {"dictionary": "sae"} | other]
    rows.append({"dictionary": "channels"} | row | {"value": None, "n": 5})
    assert visaebench.markdown(rows).splitlines() == [
        "| metric | protocol | sae | channels | n |",
        "|---|---|---|---|---|",
        "| absorption (family) | package | 0.250 | – | 4, 5 |",
        "| sparse_probing_accuracy k=5 | package | 0.250 | – | 4 |",
    ]
