"""Writes pretrained_reference.json: logits of the torch networks of all four sources on seeded weights.

Needs torch, torchvision, timm and transformers, in an environment of their own:

    pip install torch torchvision timm transformers
    python tests/classifier/make_pretrained_reference.py

facebook's own code is in no package; `Facebook` below is the published network (arXiv 2201.03545) under
that repository's tensor names.
"""

import itertools
import json
import pathlib

import timm
import torch
import torchvision
import transformers
from torch import nn

from tests.classifier.pretrained_weights import IMAGE_SHAPES, N_CLASSES, SIZES, make_image, make_tensor

torch.manual_seed(0)
OUT = pathlib.Path(__file__).parent / "pretrained_reference.json"


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FacebookBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(nn.functional.gelu(self.pwconv1(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Facebook(nn.Module):
    def __init__(self, depths, dims):
        super().__init__()
        steps = [nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), ChannelsFirstNorm(dims[0], eps=1e-6))]
        for before, after in itertools.pairwise(dims):
            steps.append(nn.Sequential(ChannelsFirstNorm(before, eps=1e-6), nn.Conv2d(before, after, 2, 2)))
        self.downsample_layers = nn.ModuleList(steps)
        self.stages = nn.ModuleList(
            nn.Sequential(*(FacebookBlock(dim) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], N_CLASSES)

    def forward(self, x):
        for step, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(step(x))
        return self.head(self.norm(x.mean((2, 3))))


class HuggingFace(transformers.ConvNextForImageClassification):
    def forward(self, x):
        return super().forward(x).logits


def make_torchvision(depths, dims):
    setting = [
        torchvision.models.convnext.CNBlockConfig(dim, after, depth)
        for dim, after, depth in zip(dims, [*dims[1:], None], depths, strict=True)
    ]
    return torchvision.models.ConvNeXt(setting, num_classes=N_CLASSES)


def make_huggingface(depths, dims):
    config = transformers.ConvNextConfig(
        depths=list(depths), hidden_sizes=list(dims), num_labels=N_CLASSES, num_stages=4
    )
    return HuggingFace(config)


def make(source, size):
    depths, dims = SIZES[size]
    if source == "timm":  # by name: the small sizes keep their MLP as 1x1 convolutions
        return timm.create_model(f"convnext_{size}", num_classes=N_CLASSES)
    makers = {"facebook": Facebook, "torchvision": make_torchvision, "huggingface": make_huggingface}
    return makers[source](depths, dims)


def main():
    versions = {package.__name__: package.__version__ for package in (torch, torchvision, timm, transformers)}
    references = []
    for size in SIZES:
        for source in ("facebook", "timm", "torchvision", "huggingface"):
            model = make(source, size).eval()
            shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            weights = {name: torch.from_numpy(make_tensor(name, shape)) for name, shape in shapes.items()}
            model.load_state_dict(weights, strict=True)
            logits = {}
            for height, width in IMAGE_SHAPES:
                image = torch.from_numpy(make_image(height, width)).permute(0, 3, 1, 2)
                with torch.no_grad():
                    logits[f"{height}x{width}"] = model(image)[0].tolist()
            references.append({"source": source, "size": size, "tensors": shapes, "logits": logits})
    OUT.write_text(json.dumps({"versions": versions, "references": references}) + "\n")


if __name__ == "__main__":
    main()
