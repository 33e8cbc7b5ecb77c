"""What the stage writes of a small drawn study."""

import jsae
from jsae.report import summarise
from jsae.runtime import stages

COMPARED = ("sae", "random_matched", "frozen_decoder", "rotation", "channels", "pca", "supervised")


def test_a_drawn_study_says_what_its_features_carry(study_dir):
    study = jsae.load(study_dir)
    truth = summarise(study.config, study_dir)["ground_truth"]
    rows = study.table("counterfactual").to_pylist()
    assert {row["dictionary"] for row in rows} == set(COMPARED) and len(rows) == 9 * (6 * 4 + 1)
    n_open = sum(row["gate"] for row in rows if row["dictionary"] == "supervised")
    assert truth["n_pairs"] == n_open and 0 < truth["twin_accuracy"] <= 1
    for row in rows:
        assert (row["share"] is not None) == row["gate"]
    if n_open:  # the part's own direction carries what it does on a head that is nearly linear
        assert abs(truth["supervised"]["share"][0] - 1) < 0.3
        assert truth["sae"]["faithfulness"]["set_to"] is not None
    assert study.has_table("counterfactual_response")
    frozen = stages.manifest_in(study.workdir / "baselines" / "frozen_decoder")
    assert frozen["status"] == "complete" and frozen["config"]["sae"]["frozen"] == "decoder"
