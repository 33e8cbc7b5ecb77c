"""The SAE variants, one file each, and the dictionary that names them.

    relu_l1      f_n = relu(pre); an L1 penalty, with unit decoder rows or weighted by their norms
    topk         the k largest pre-activations of each vector (arXiv 2406.04093)
    batch_topk   the k * N largest of a batch, a learned threshold at inference (arXiv 2412.06410)
    jumprelu     a learned threshold for each feature, an L0 penalty (arXiv 2407.14435)
    matryoshka   batch_topk on nested dictionaries (arXiv 2503.17547)
    gated        one path for whether, one for how much (arXiv 2404.16014)

A new variant is one file with a subclass of `base.Variant` (its settings, what it computes, its form in
SAELens' files), one line here, and one test file. Its settings are config.sae.<name>.
"""

import dataclasses
from typing import Any

from jsae.sae.variants import shard
from jsae.sae.variants.base import Batch, Parts, SaeLens, Variant, preactivations
from jsae.sae.variants.batch_topk import BatchTopK
from jsae.sae.variants.gated import Gated
from jsae.sae.variants.jumprelu import JumpReLU
from jsae.sae.variants.matryoshka import Matryoshka
from jsae.sae.variants.relu_l1 import ReluL1
from jsae.sae.variants.shard import WHOLE, Shard
from jsae.sae.variants.topk import TopK

VARIANTS: dict[str, type[Variant]] = {
    "relu_l1": ReluL1,
    "topk": TopK,
    "batch_topk": BatchTopK,
    "jumprelu": JumpReLU,
    "matryoshka": Matryoshka,
    "gated": Gated,
}

__all__ = [
    "VARIANTS",
    "WHOLE",
    "Batch",
    "Parts",
    "SaeLens",
    "Shard",
    "Variant",
    "check_name",
    "defaults",
    "make",
    "of_section",
    "preactivations",
    "settings_of",
    "shard",
]


def check_name(variant: str) -> None:
    """Raise ValueError, listing the variants, unless `variant` is one."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown SAE variant {variant!r}; the variants are {', '.join(VARIANTS)}")


def settings_of(variant: str) -> tuple[str, ...]:
    """The names of a variant's settings."""
    return tuple(field.name for field in dataclasses.fields(VARIANTS[variant]))


def defaults() -> dict[str, dict[str, Any]]:
    """Each variant's settings with their defaults, as they stand in config.sae."""
    return {name: dataclasses.asdict(variant()) for name, variant in VARIANTS.items()}


def make(variant: str, **settings: Any) -> Variant:
    """The variant of a name with these settings, the others at their defaults.

    Raises ValueError for a name that is no variant or a setting that it does not have; see also
    `Variant.check`.
    """
    check_name(variant)
    unknown = [name for name in settings if name not in settings_of(variant)]
    if unknown:
        raise ValueError(
            f"variant {variant!r} has no {unknown[0]}; its settings are {', '.join(settings_of(variant))}"
        )
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    return VARIANTS[variant](**values)


def of_section(c: Any) -> Variant:
    """The variant that `config.sae` chooses, with the settings in its section.

    Raises ValueError for an unknown variant or setting, and for a variant's setting outside its section.
    """
    check_name(c.variant)
    for name in sorted(set(c) - set(VARIANTS)):
        having = [f"config.sae.{variant}.{name}" for variant in VARIANTS if name in settings_of(variant)]
        if having:
            raise ValueError(f"config.sae.{name} is a setting of single variants: {', '.join(having)}")
    return make(c.variant, **c.get(c.variant, {}))
