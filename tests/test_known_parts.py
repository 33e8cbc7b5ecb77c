"""The known answer on the shared study: what is found of the parts, beside nulls and a ceiling."""

import jax.numpy as jnp
import numpy as np
import pytest

import jsae
from jsae import metrics
from jsae.analysis import cells, documentation
from jsae.data.synthetic_aircraft.variants import PART_NAMES, VARIANTS
from launch import known_parts


@pytest.fixture(scope="module")
def study(study_dir):
    return jsae.load(study_dir)


@pytest.fixture(scope="module")
def answer(study):
    return {name: np.array(values) for name, values in study.table("known_answer").to_pydict().items()}


def test_every_part_is_asked_and_every_column_documented(study, answer):
    assert answer["part"].tolist() == list(PART_NAMES)
    for name in ("parts", "localisation", "nearest", "receptive", "known_answer", "sigma_sweep"):
        assert all(documentation(study.table(name)).values()), name
    labels = study.data["test"].labels
    for part, n_with, n_without in zip(answer["part"], answer["n_with"], answer["n_without"], strict=True):
        has = np.array([part in variant.parts for variant in VARIANTS])
        assert (n_with, n_without) == (has[labels].sum(), (~has)[labels].sum()), part


def test_the_reported_auroc_is_that_of_the_chosen_feature(study, answer):
    store, split = study.activations("test"), study.data["test"]
    where = cells.PartCells(split, store.grid, study.classifier.params.model.stride_px(study.site))
    n = store.n_images
    feats = np.asarray(study.sae.encode(jnp.asarray(store.read(0, n)))).reshape(
        n * store.grid[0] * store.grid[1], -1
    )
    positive, negative = (array.reshape(len(feats), -1) for array in where(np.arange(n)))
    for p, feature in enumerate(answer["feature"][:3]):
        counted = positive[:, p] | negative[:, p]
        expected, _ = metrics.auroc(feats[counted][:, [feature]], positive[counted, p])
        assert answer["auroc"][p] == pytest.approx(expected[0], abs=1e-3)  # features at the edge of the top k


def test_the_line_that_is_held(answer):
    """Not the aim (0.85, and 0.10 above every null), but what there is and must not be lost.

    On a classifier as little trained as this one 0.83 and 0.58 were measured, and 6 parts.
    """
    assert answer["probe_auroc"].mean() > 0.75  # the activations tell where the parts are ...
    assert answer["auroc"].mean() > 0.55  # ... one feature of the SAE much less
    assert answer["specific"].sum() >= 3  # removing it hurts the right variants for some parts


def test_the_markdown_counts_over_seeds(answer):
    table = {name: values.tolist() for name, values in answer.items()}
    text = known_parts.markdown([table, table])
    assert f"parts found: {answer['found'].sum()} of 14, {answer['found'].sum()} of 14" in text
    rows = [line for line in text.splitlines() if line.startswith("| low_wing")]
    assert len(rows) == 1 and f"{answer['auroc'][0]:.2f} [" in rows[0]
    assert known_parts.markdown([table]).count("[") == 0
