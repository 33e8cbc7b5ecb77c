"""The SAE variants, one file each, and the dictionary that names them.

    relu_l1      f_n = relu(pre); an L1 penalty, with unit decoder rows or weighted by their norms
    topk         the k largest pre-activations of each vector (arXiv 2406.04093)
    batch_topk   the k * N largest of a batch, a learned threshold at inference (arXiv 2412.06410)
    jumprelu     a learned threshold for each feature, an L0 penalty (arXiv 2407.14435)
    matryoshka   batch_topk on nested dictionaries (arXiv 2503.17547)
    gated        one path for whether, one for how much (arXiv 2404.16014)

A new variant is one file with a `base.Variant`, one line here, and one test file. What its SAE looks like
in SAELens' format stands in `jsae.sae.export`.
"""

from jsae.sae.variants import batch_topk, gated, jumprelu, matryoshka, relu_l1, topk
from jsae.sae.variants.base import Batch, Parts, Terms, Variant, preactivations
from jsae.sae.variants.shard import WHOLE, Shard

VARIANTS: dict[str, Variant] = {
    "relu_l1": relu_l1.VARIANT,
    "topk": topk.VARIANT,
    "batch_topk": batch_topk.VARIANT,
    "jumprelu": jumprelu.VARIANT,
    "matryoshka": matryoshka.VARIANT,
    "gated": gated.VARIANT,
}

__all__ = [
    "VARIANTS",
    "WHOLE",
    "Batch",
    "Parts",
    "Shard",
    "Terms",
    "Variant",
    "check",
    "check_name",
    "check_terms",
    "preactivations",
]


def check_name(variant: str) -> None:
    """Raise ValueError, listing the variants, unless `variant` is one."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown SAE variant {variant!r}; the variants are {', '.join(VARIANTS)}")


def check(variant: str, *, n_channels: int, n_features: int, k: int | None) -> None:
    """Raise ValueError unless these settings make an SAE; the message lists the valid ones."""
    check_name(variant)
    if n_features < 1 or n_channels < 1:
        raise ValueError(f"n_features={n_features} and n_channels={n_channels} must both be at least 1")
    if not VARIANTS[variant].has_k:
        if k is not None:
            raise ValueError(f"variant {variant!r} has no k; got k={k}, expected k=None")
    elif not isinstance(k, int) or not 1 <= k <= n_features:
        raise ValueError(f"variant {variant!r} needs an integer k in 1..n_features={n_features}; got k={k!r}")


def check_terms(variant: str, terms: Terms, n_features: int) -> None:
    """Raise ValueError unless the variant can be trained with these terms."""
    if terms.decoder_norm not in ("unit", "free"):
        raise ValueError(f"decoder_norm={terms.decoder_norm!r}; the valid values are 'unit' and 'free'")
    if terms.decoder_norm == "free" and variant != "relu_l1":
        raise ValueError(
            f"decoder_norm='free' is for variant 'relu_l1', whose penalty is then weighted by the norms; "
            f"variant {variant!r} needs 'unit'"
        )
    if variant == "jumprelu" and not terms.bandwidth > 0:
        raise ValueError(f"variant 'jumprelu' needs a bandwidth above 0; got {terms.bandwidth}")
    if variant == "matryoshka":
        matryoshka.check_prefixes(terms.prefixes, n_features)
