"""ConvNeXt (arXiv 2201.03545), with the weights of facebook, timm, torchvision and Hugging Face."""

from jsae.classifier.families.convnext import weights
from jsae.classifier.families.convnext.model import SIZES, ConvNeXt
from jsae.classifier.families.family import Family

FAMILY = Family(
    title="ConvNeXt",
    model=ConvNeXt,
    sizes=SIZES,
    sources=weights.SOURCES,
    infer=weights.infer,
    rules=weights.rules,
    preprocessing=weights.preprocessing,
    fold_scaling=weights.fold_scaling,
    hints={"grn": "ConvNeXt V2 (grn) is another network"},
)
