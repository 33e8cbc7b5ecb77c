"""Spread over classifiers: what `seeds` makes of its rows, and a run that goes on with what is missing."""

import numpy as np
import pytest
import scipy.stats

from jsae import metrics
from jsae.experiments import seeds
from jsae.runtime import artifacts


def rows_of(values):
    """Rows from {dictionary: [classifier][sae] -> isolated} at m = 4."""
    return [
        dict.fromkeys(seeds.TABLE.names, 0.0)
        | {"classifier": str(c), "sae": c + 1000 * s, "dictionary": name, "choice": "single", "m": 4}
        | {"isolated": value}
        for name, of_classifiers in values.items()
        for c, of_saes in enumerate(of_classifiers)
        for s, value in enumerate(of_saes)
    ]


VALUES = {
    "sae": [[0.5, 0.7], [0.4, 0.6], [0.55, 0.75]],
    "frozen_decoder": [[0.1, 0.1], [0.2, 0.2], [0.1, 0.3]],
    "rotation": [[0.3, 0.5], [0.45, 0.55], [0.3, 0.6]],
}


def test_a_classifier_is_one_case_whatever_the_number_of_its_saes():
    found = seeds.results(rows_of(VALUES))
    means = np.array([0.6, 0.5, 0.65])
    half = scipy.stats.t.ppf(0.975, 2) * means.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(
        found["isolated_m4"]["sae"], [means.mean(), means.mean() - half, means.mean() + half]
    )
    assert (found["n_classifiers"], found["n_saes"]) == (3, 2)


def test_both_nulls_are_tested_by_classifier_and_corrected_by_holm():
    found = seeds.results(rows_of(VALUES))
    differences = {"frozen_decoder": [0.5, 0.3, 0.45], "rotation": [0.2, 0.0, 0.2]}
    p = {name: scipy.stats.ttest_1samp(values, 0).pvalue for name, values in differences.items()}
    assert found["p_holm"]["frozen_decoder"] == pytest.approx(2 * p["frozen_decoder"])
    assert found["p_holm"]["rotation"] == pytest.approx(max(p["rotation"], 2 * p["frozen_decoder"]))


def test_an_untrained_classifier_and_unknown_scores_stay_out_of_the_spread():
    rows = rows_of(VALUES)
    untrained = rows[0] | {"classifier": seeds.UNTRAINED, "isolated": None}
    assert seeds.results([*rows, untrained]) == seeds.results(rows)
    rows[0]["isolated"] = None
    found = seeds.results(rows)
    assert found["isolated_m4"]["sae"] == [None] * 3  # not the mean of the classifiers that are left
    assert found["isolated_m4"]["rotation"][0] is not None


def test_other_choices_have_tables_of_their_own_and_stay_out_of_the_headline():
    rows = rows_of(VALUES)
    grown = [row | {"choice": "tracking", "isolated": row["isolated"] + 0.1} for row in rows]
    assert seeds.results([*rows, *grown]) == seeds.results(rows)
    single, tracking, combinations = seeds.markdown([*rows, *grown]).split("\n\n")
    assert "| sae | 4 | 0.00 [0.00, 0.00] |" in combinations and "| combinations |" in combinations
    assert single.splitlines()[2].split("|")[-2].startswith(" 0.58 [")
    assert tracking.splitlines()[2].split("|")[-2].startswith(" 0.68 [")


def test_a_table_of_other_columns_is_measured_again(tmp_path):
    folder = tmp_path / seeds.FOLDER
    table = seeds.TABLE.of_rows([row | {"digest": "any"} for row in rows_of(VALUES)])
    artifacts.write_table(folder / seeds.TABLE.file, table, {})
    assert len(seeds.load(tmp_path)) == 18
    artifacts.write_table(folder / seeds.TABLE.file, table.drop_columns(["choice"]), {})
    assert seeds.load(tmp_path) == []


def test_holm_adjusts_step_by_step():
    np.testing.assert_allclose(metrics.holm([0.04, 0.01, 0.03, np.nan]), [0.06, 0.03, 0.06, np.nan])
    np.testing.assert_allclose(metrics.holm([0.9, 0.8]), [1, 1])
