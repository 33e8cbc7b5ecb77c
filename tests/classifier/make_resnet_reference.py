"""Writes resnet_reference.npz: logits and activations of torchvision's and timm's ResNets on seeded weights.

Needs torch, torchvision and timm, in an environment of their own:

    pip install torch torchvision timm
    python -m tests.classifier.make_resnet_reference

Of each stage's output it keeps the mean over the grid, [C], and the first cell, [C].
"""

import json
import pathlib

import numpy as np
import timm
import torch
import torchvision

from tests.classifier.resnet_weights import IMAGE_SHAPES, N_CLASSES, SIZES, make_image, make_tensor

OUT = pathlib.Path(__file__).parent / "resnet_reference.npz"
MAKERS = {
    "torchvision": lambda size: torchvision.models.get_model(size, weights=None, num_classes=N_CLASSES),
    "timm": lambda size: timm.create_model(size, pretrained=False, num_classes=N_CLASSES),
}


def outputs_of(model, image) -> dict:
    """The logits, and of each stage's output [C, H, W] the mean over the grid and the first cell, [2, C]."""
    relu = torch.nn.functional.relu
    with torch.no_grad():
        x, found = model.maxpool(relu(model.bn1(model.conv1(image)))), {}
        for s in range(1, 5):
            x = getattr(model, f"layer{s}")(x)
            found[f"stage{s}"] = np.stack([x[0].mean((1, 2)).numpy(), x[0, :, 0, 0].numpy()])
        return found | {"logits": model(image)[0].numpy()}


def main():
    versions = {package.__name__: package.__version__ for package in (torch, torchvision, timm)}
    arrays, tensors = {}, {}
    for source, make in MAKERS.items():
        for size in SIZES:
            model = make(size).eval()
            shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            weights = {name: torch.from_numpy(make_tensor(name, shape)) for name, shape in shapes.items()}
            model.load_state_dict(weights, strict=True)
            tensors[f"{source}/{size}"] = shapes
            for height, width in IMAGE_SHAPES:
                image = torch.from_numpy(make_image(height, width)).permute(0, 3, 1, 2)
                prefix = f"{source}/{size}/{height}x{width}"
                arrays |= {f"{prefix}/{name}": array for name, array in outputs_of(model, image).items()}
    described = np.array(json.dumps({"versions": versions, "tensors": tensors}))
    np.savez_compressed(OUT, described=described, **arrays)


if __name__ == "__main__":
    main()
