"""The SAE section of the benchmark at a small size: which numbers it gives."""

from launch import benchmark_sae


def test_streaming_beside_a_resident_store():
    row = benchmark_sae.stream(n_channels=16, n_features=64, k=4, n=128, buffer_mib=0.1)
    assert row["store_mib"] > 4.5 * row["buffer_mib"]
    for name in ("streamed_alone", "streamed", "resident"):
        assert row[f"{name}_vectors_per_s"] > 0 and f"{name}_grew_mib" in row
