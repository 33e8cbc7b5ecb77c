"""ResNet (arXiv 1512.03385) of 18, 34 and 50 layers, or any basic blocks, batch norms folded away."""

from jsae.classifier.families.family import Family
from jsae.classifier.families.resnet import weights
from jsae.classifier.families.resnet.model import SIZES, ResNet

FAMILY = Family(
    title="ResNet",
    model=ResNet,
    sizes=SIZES,
    sources=weights.SOURCES,
    infer=weights.infer,
    rules=weights.rules,
    preprocessing=weights.preprocessing,
    fold_scaling=weights.fold_scaling,
)
