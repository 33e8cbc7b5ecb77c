"""The SAE section of the benchmark at a small size: which numbers it gives."""

from launch.benchmark import sae as benchmark_sae


def test_steps_beside_peers_and_the_encoder_product(monkeypatch):
    monkeypatch.setattr(benchmark_sae, "SETTINGS", {"topk": {}})
    peers = [{"peer": "them", "variant": v, "vectors_per_s": 1.0} for v in ("topk", "relu_l1")]

    def alternate(variants, n_items, rounds):
        for run in variants.values():
            run()
        return dict.fromkeys(variants, 2.0) | {"encoder_product": 5.0}

    row = benchmark_sae.rates(alternate, 1, lambda: peers, n_channels=16, n_features=64, k=4, n=64)
    topk = row["topk"]
    assert topk["over_them"] == topk["vectors_per_s"] == topk["auxk_at_work_vectors_per_s"] == 2.0
    assert topk["step_over_encoder_product"] == 2.5 and topk["peak_mib"] > 0


def test_streaming_beside_a_resident_store():
    row = benchmark_sae.stream(1, n_channels=16, n_features=64, k=4, n=128, buffer_mib=0.1)
    assert row["store_mib"] > 4.5 * row["buffer_mib"]
    for name in ("streamed_alone", "streamed", "resident"):
        assert row[f"{name}_vectors_per_s"] > 0 and f"{name}_grew_mib" in row
