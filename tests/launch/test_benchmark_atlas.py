"""The benchmark's section on the atlas runs and counts what it says, in a small size."""

from launch import benchmark


def test_rates_of_the_atlas():
    row = benchmark.atlas_rates(1, n_images=8, n_features=40, n_channels=16, n_classes=3)
    assert row["n_pairs"] == 320 and 0 <= row["n_guarded"] <= 320
    assert row["ablations_per_s"] > 0 and row["three_targets_ablations_per_s"] > 0
