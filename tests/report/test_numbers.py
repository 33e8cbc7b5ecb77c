"""Every number of a page is that of the table it comes from."""

from jsae.report.formatting import interval, number
from jsae.report.pages.sections import with_wilson
from tests.report import fake_results, fake_study, fake_tables, fake_world
from tests.report.parsed_page import Parsed


def with_ends(value, pair) -> str:
    return f"{number(value)} [{number(pair[0])}, {number(pair[1])}]"


def estimate(row, name) -> str:
    return with_ends(row[name], (row[f"{name}_low"], row[f"{name}_high"]))


def test_numbers_of_the_overview_are_those_of_the_tables(report):
    tables, results = Parsed(report / "index.html").tables, fake_results.results()
    n = fake_world.N_IMAGES
    splice = results["ablation"]["splice"]
    assert tables["Splice"] == [
        [
            name,
            estimate(with_wilson(splice[key], n), "accuracy"),
            *(number(splice[key][k]) for k in ("mean_per_class_accuracy", "cross_entropy", "margin")),
        ]
        for name, key in (
            ("clean", "clean"),
            ("replaced by the SAE's reconstruction", "spliced"),
            ("replaced by their mean", "mean_ablated"),
        )
    ]
    classes = sorted(
        fake_tables.classifier_tables()["per_class"].to_pylist(), key=lambda r: (r["accuracy"], r["label"])
    )
    assert [row[:5] for row in tables["Accuracy by class"]] == [
        [
            str(r["label"]),
            r["class_name"],
            str(r["n_images"]),
            estimate(with_wilson(r, r["n_images"]), "accuracy"),
            "–" if r["precision"] is None else number(r["precision"]),
        ]
        for r in classes
    ]
    space = results["ablation"]["feature_space"]
    numbers = {with_ends(space[key], space[f"{key}_ci95"]) for key in space if f"{key}_ci95" in space}
    assert {row[1] for row in tables["Mean effects"]} == numbers
    effects = {
        row["feature"]: row
        for row in fake_tables.feature_space_table().to_pylist()
        if (row["scope"], row["target"], row["measure"]) == ("map", "own_class", "margin")
        and row["mean_delta"] is not None
    }
    shown = {int(row[0].split()[0]): row[2:] for row in tables["Effect of each ablated feature"]}
    assert shown == {
        feature: [
            estimate(r, "mean_delta"),
            number(r["control_direction_mean_delta"]),
            estimate(r, "effect_minus_direction"),
        ]
        for feature, r in effects.items()
    }
    cumulative = [r for r in fake_tables.cumulative_table().to_pylist() if r["m"] in (4, 8)]
    assert [row[3:] for row in tables["Many features at once"][1:]] == [
        [estimate(r, "mean_margin"), estimate(r, "accuracy")] for r in cumulative
    ]
    heads = fake_tables.LAYOUTS["baselines"].names
    place = [name for name in heads if not name.endswith(("_low", "_high"))].index("margin_per_norm")
    assert [row[place] for row in tables["Other dictionaries"]] == [
        estimate(r, "margin_per_norm") for r in fake_tables.baselines_table().to_pylist()
    ]
    found = fake_tables.parts_table().to_pylist()
    shown = tables["Which feature finds a part"]
    assert [row[0] for row in shown] == ["tail", "<b>nose</b>"]
    assert [row[3:5] for row in shown] == [[number(r["auroc"]), number(r["pointing"])] for r in found]
    assert [number(r["position_auroc"]) in row for r, row in zip(found, shown, strict=True)] == [True, True]
    assert [row[1] for row in tables["Cost"]] == [number(12.345 * n) for n in (1, 2, 3, 4, 5, 15)]


def test_numbers_of_an_image_are_those_of_the_survey(made_up_study, report):
    study = fake_study.read_made_up(made_up_study)
    tables = Parsed(report / "images.html").tables
    survey = fake_study.surveyed(study)
    names, tops = fake_world.CLASSES, study.features["top_class_name"]
    assert len(survey.images) == 12
    for image, entry in survey.images.items():
        assert [row[:6] for row in tables[f"Features of image {image:07d}"]] == [
            [
                str(r["feature"]),
                tops[r["feature"]] or "–",
                number(r["value"]),
                number(r["delta_margin"]),
                number(r["delta_confidence"]),
                "the same" if r["prediction"] == entry["prediction"] else names[r["prediction"]],
            ]
            for r in entry["features"]
        ]


def test_numbers_of_a_feature_page_are_those_of_the_tables(report):
    feature_space = fake_tables.feature_space_table().to_pylist()
    input_space = fake_tables.input_space_table().to_pylist()
    row = fake_tables.features_table().to_pylist()[1]
    text = Parsed(report / "features" / "feature-1.html").text
    names = ("purity16", "selectivity", "selectivity_null", "selectivity_excess", "selectivity_z", "density")
    names += ("label_entropy", "label_entropy_null", "auroc", "auroc_train", "auroc_train_q")
    names += ("max", "mean_active")
    values = [row[name] for name in names]
    for effect in (r for r in feature_space if r["feature"] == 1):
        controls = ("direction", "auroc", "feature")
        stems = ("mean_delta", *(f"effect_minus_{c}" for c in controls))
        values += [effect[stem] for stem in stems]
        values += [effect[f"control_{c}_mean_delta"] for c in controls]
        values += [effect[f"{k}_{c}"] for k in ("p", "q") for c in controls]
        for stem in stems:
            assert str(interval(effect[f"{stem}_low"], effect[f"{stem}_high"]))[17:-7] in text
    for effect in (r for r in input_space if r["feature"] == 1):
        if (effect["target"], effect["measure"]) == ("top_class", "margin"):
            names = ("mean_delta", "effect_minus_control", "area_share", "share_qualified", "fall_median")
            values += [effect[name] for name in (*names, "matched_fall_median", "control_fall_median")]
    missing = [value for value in values if number(value) not in text]
    assert len(values) > 250
    assert not missing
