"""Stage `activations`: run the classifier over every split and store one site's activations.

With site "arrays" they were extracted elsewhere and are taken from `config.data.dir`, their head, if it is
known, from `config.activations.head` (imported.py).

Mean and scale of the train split are measured on what is stored, in float64 on the host, shard by shard:
first the mean, then the squared deviations from it.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jsae import classifier, metrics
from jsae.activations import imported, store
from jsae.classifier import pretrained
from jsae.data import augment, identity, pipeline
from jsae.data import settings as data_settings
from jsae.data.drawn_splits import SPLITS
from jsae.runtime import artifacts, mesh, settings, stages
from jsae.runtime.context import RunContext

RANGES = {"batch_size": settings.COUNT, "images_per_shard": settings.COUNT}


def run(config: Any, workdir: str | os.PathLike, context: RunContext | None = None) -> None:
    """Extract `config.activations.site` for train, val and test, going on after the last whole shard.

    Raises:
      ValueError: unknown site or dtype, a batch size the mesh cannot deal, or arrays that cannot be used.
      stages.StageMissing: no finished classifier.
    """
    context = context or RunContext()
    stage = stages.begin(config, workdir, "activations", context)
    if stage.up_to_date:
        return
    check_config(config)
    c = config.activations
    if c.site == stages.IMPORTED:
        extract = _from_arrays(config, workdir, stage)
    else:
        extract = _from_classifier(config, workdir, stage)
    normalisation: dict[str, Any] = {}
    results, skipped = {}, {}
    for name in SPLITS:
        folder = stage.folder / name
        shape, sizes, class_names, skipped[name] = extract(name)
        if not normalisation:  # train comes first
            normalisation = measure(folder, sizes, c.dtype, context)
        manifest = {
            "site": c.site,
            "grid": list(shape[:2]),
            "n_channels": shape[2],
            "n_images": sum(sizes),
            "dtype": c.dtype,
            "shards": sizes,
            "class_names": list(class_names),
            "classifier_digest": stage.manifest["upstream"],
            **{key: normalisation[key] for key in ("mean", "scale")},
        }
        artifacts.write_json(folder / "manifest.json", manifest, checked=True)
        results[f"n_vectors_{name}"] = sum(sizes) * shape[0] * shape[1]
    stage.finish(
        results
        | {
            "site": c.site,
            "grid": list(shape[:2]),
            "n_channels": shape[2],
            "scale": normalisation["scale"],
            "gamma": normalisation["gamma"],
            "skipped_images": skipped,
        }
    )


def check_config(config: Any) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run."""
    c, k = config.activations, config.classifier
    settings.check("config.activations", c, RANGES)
    settings.check("config.runtime", config.runtime, settings.RUNTIME)
    data_settings.check(config.data)
    if c.dtype not in store.DTYPES:
        raise ValueError(f"config.activations.dtype={c.dtype!r}; valid are {', '.join(store.DTYPES)}")
    if c.site == stages.IMPORTED:
        return
    device_mesh = mesh.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    mesh.check_batch(device_mesh, c.batch_size, "config.activations.batch_size")
    if k.workdir:
        model = classifier.load_model(stages.folder(config, k.workdir, "classifier"))
    elif k.pretrained:
        model = pretrained.read_model(k.pretrained)  # None where the file is not needed any more, and gone
    else:
        model = classifier.make_model(k.arch, 1, stem_stride=k.stem_stride, depths=k.depths, dims=k.dims)
    if model is not None:
        model.check_site(c.site)


def _from_classifier(config, workdir, stage: stages.Stage) -> Callable:
    """A function of a split's name that runs the classifier over a split and stores the site there.

    It returns (H, W, C), shard sizes, class names and the (id, reason) of images left out.
    """
    c = config.activations
    device_mesh = mesh.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    mesh.check_batch(device_mesh, c.batch_size, "config.activations.batch_size")
    params = classifier.load(stages.folder(config, workdir, "classifier"))
    params.model.check_site(c.site)
    params = jax.jit(lambda p: p, out_shardings=mesh.replicated(device_mesh))(mesh.to_host(params))
    forward = make_forward(device_mesh, c.site)
    splits = identity.splits_of(config, workdir)

    def extract(name):
        split = splits[name]
        shape, sizes = _extract(forward, params, split, stage, c, device_mesh)
        return shape, sizes, split.class_names, [list(item) for item in split.skipped]

    return extract


def _from_arrays(config, workdir, stage: stages.Stage) -> Callable:
    """The same for activations that were extracted elsewhere; nothing is left out of them."""
    found = imported.read(config.data)
    path = config.activations.get("head", "")
    head = imported.read_head(path, found, stage.folder) if path else None
    rows = found.rows
    if config.data.train_split == "trainval":
        rows = rows | {"train": np.sort(np.concatenate([rows["train"], rows["val"]]))}
    identity.check_arrays(config, workdir, found, rows, stage)

    def extract(name):
        shape, sizes = imported.write(found, rows[name], name, stage, config.activations, head)
        return shape, sizes, found.class_names, []

    return extract


def make_forward(device_mesh: Mesh, site: str) -> Callable:
    """A jitted (params, images uint8 [B, S, S, 3]) -> (acts at `site` [B, H, W, C], logits [B, L])."""

    def forward(params, images):
        logits, acts = classifier.apply(params, augment.normalise(images))
        return acts[site], logits

    return jax.jit(forward, out_shardings=mesh.replicated(device_mesh))


def _extract(forward, params, split, stage: stages.Stage, c, device_mesh: Mesh):
    """Write the split's shards that are missing; ((H, W, C), shard sizes)."""
    folder, context = stage.folder / split.name, stage.context
    n, size = len(split.labels), c.images_per_shard
    sizes = [min(size, n - start) for start in range(0, n, size)]
    files = [(folder / store.shard_name(i), folder / f"logits-{i:05d}.npy") for i in range(len(sizes))]
    missing = mesh.of_writer(
        lambda: [i for i, pair in enumerate(files) if not all(path.exists() for path in pair)]
    )
    with context.progress(n, label=f"activations of {split.name}", unit="image") as progress:
        for i, count in enumerate(sizes):
            path, logits_path = files[i]
            if i in missing:
                rows = slice(i * size, i * size + count)
                part = dataclasses.replace(split, images=split.images[rows], labels=split.labels[rows])
                acts, scores = [], []
                for batch in pipeline.eval_batches(
                    part, batch_size=c.batch_size, process=mesh.process_slice(device_mesh)
                ):
                    out = forward(params, mesh.put_batch(device_mesh, {"image": batch["image"]})["image"])
                    out = mesh.to_host(out)
                    acts.append(store.to_stored(out[0], c.dtype))
                    scores.append(out[1])
                    context.check()
                artifacts.write_array(path, np.concatenate(acts)[:count])
                artifacts.write_array(logits_path, np.concatenate(scores)[:count])
                stage.kept()
            progress.update(count)
    mesh.wait_for_all(f"activations of {split.name}: written")
    logits = [artifacts.read_array(logits_path) for _, logits_path in files]
    artifacts.write_array(folder / "logits.npy", np.concatenate(logits))
    artifacts.write_array(folder / "labels.npy", np.asarray(split.labels, np.int32))
    artifacts.write_json(folder / "image_ids.json", list(split.ids), checked=True)
    first = store.open_shard(folder / store.shard_name(0))
    return first.shape[1:], sizes


def measure(
    folder: epath.Path, sizes: list[int], dtype: str, context: RunContext | None = None
) -> dict[str, Any]:
    """Mean [C], scale and `metrics.gamma` of the stored vectors.

    Raises ValueError if an activation is not finite.
    """

    context = context or RunContext()

    def shards() -> Iterator[np.ndarray]:
        for i in range(len(sizes)):
            path = folder / store.shard_name(i)
            acts = store.from_stored(store.open_shard(path), dtype).astype(np.float64)
            if not np.isfinite(acts).all():
                image = int(np.argwhere(~np.isfinite(acts))[0][0])
                raise ValueError(f"{path}: activations of image {image} of this shard are not finite")
            yield acts.reshape(-1, acts.shape[-1])
            context.check_here()

    count, total = 0, np.zeros(())
    for vectors in shards():
        count, total = count + len(vectors), total + vectors.sum(0)
    mean = total / count
    squares = sum((np.square(vectors - mean[None, :]).sum(0) for vectors in shards()), np.zeros(()))  # [C]
    std = np.sqrt(squares / count)
    scale = float(np.sqrt(squares.sum() / count / len(mean)))
    if scale == 0:
        raise ValueError(
            f"all activations in {folder} are the same vector; there is nothing for an SAE to learn"
        )
    return {
        "mean": [float(m) for m in mean.astype(np.float32)],
        "scale": float(np.float32(scale)),
        "gamma": metrics.gamma(mean, std),
    }
