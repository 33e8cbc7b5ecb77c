"""A finished study opened in Python: its classifier, SAE, data and tables.

study = jsae.load("runs/demo")
logits, acts = study.classifier(images)
feats = study.sae.encode(acts[study.site])
ablated, _ = study.classifier(images, edits={study.site: study.suppress([12, 407])})
"""

import dataclasses
import functools
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.compute as pc
from etils import epath

from jsae import classifier, sae
from jsae.ablation import edit
from jsae.activations import ActivationStore
from jsae.classifier import convnext
from jsae.data import augment, cache, decode, identity
from jsae.report import card
from jsae.runtime import artifacts, paths, remote, stages

_TABLES = {
    "features": "analysis",
    "top_patches": "analysis",
    "nearest": "analysis",
    "localisation": "analysis",
    "receptive": "analysis",
    "monosemanticity": "analysis",
    "parts": "analysis",
    "feature_space": "ablation",
    "input_space": "ablation",
    "agreement": "ablation",
    "atlas": "ablation",
    "atlas_classes": "ablation",
    "cumulative": "ablation",
    "known_answer": "ablation",
    "sigma_sweep": "ablation",
    "baselines": "ablation",
}
_FINAL_SITE_ONLY = ("cumulative",)


def load(workdir) -> "Study":
    """Open the study in `workdir`; weights are restored from its orbax checkpoints.

    Raises FileNotFoundError if there is no study, or its classifier, extraction or SAE is not finished.
    """
    workdir = paths.resolve(workdir)
    remote.check(workdir)
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} holds no study (no config.json); run launch.pipeline first")
    config = artifacts.read_json(workdir / "config.json")
    for stage in ("classifier", "activations", "sae"):
        if stage not in stages.skipped(config):
            stages.require(config, workdir, stage)
    return Study(workdir, config)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The study's classifier (EMA weights); call it on images."""

    params: classifier.Params

    def __call__(self, images, *, edits: Mapping | None = None, start: str | None = None):
        """Logits [B, L] and a dict site -> activations [B, H, W, C].

        Args:
          images: RGB [B, S, S, 3], uint8, or float32 already normalised (`Study.preprocess` makes uint8);
            with `start`, raw activations [B, H, W, C] of that site.
          edits: site -> function of its activations. Edits that are pytrees (jsae.ablation.edit) run under
            one jit; any other function works as well, outside it.
          start: a site to continue from.

        Raises ValueError for an unknown site or a wrong shape.
        """
        edits = dict(edits or {})
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = augment.normalise(images)
        arrays = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(edits))
        run = _jitted if arrays else _apply
        return run(self.params, images, edits, start)


def _apply(params, images, edits, start):
    with jax.default_matmul_precision("float32"):
        return classifier.apply(params, images, edits=edits, start=start)


_jitted = jax.jit(_apply, static_argnums=3)


@dataclasses.dataclass(frozen=True)
class Study:
    """What `load` returns; everything is read when first asked for.

    Attributes:
      workdir: the study's folder.
      config: its resolved config, a nested dict.
    """

    workdir: epath.Path
    config: dict

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The classifier. Raises StageMissing in a study of bare activations, which has none."""
        if "classifier" in stages.skipped(self.config):
            stages.require(self.config, self.workdir, "classifier")
        return Classifier(classifier.load(self._folder("classifier")))

    @functools.cached_property
    def sae(self) -> sae.SAE:
        return sae.load(self._folder("sae"))

    @property
    def site(self) -> str:
        """The site whose activations the SAE was trained on."""
        return self.config["activations"]["site"]

    @functools.cached_property
    def data(self) -> dict[str, cache.Split]:
        """The splits "train", "val" and "test" with images, labels, ids and, where drawn, part masks."""
        return identity.splits_of(self.config, self.workdir)

    @functools.cached_property
    def summary(self) -> dict:
        """summary.json."""
        return artifacts.read_json(self.workdir / "summary.json")

    def activations(self, split: str) -> ActivationStore:
        """The stored activations of a split."""
        return ActivationStore.open(self._folder("activations") / split)

    def table(self, name: str):
        """A result table as a pyarrow Table.

        What a feature sees: features, top_patches, nearest, receptive; where it fires, if masks or boxes say
        where things are: localisation, parts; with another study's embeddings: monosemanticity. What it does:
        feature_space, input_space, agreement, sigma_sweep for the features chosen, atlas, atlas_classes for
        all, at the final site cumulative for many at once; known_answer where parts are known. baselines is
        written by launch.baselines.

        Raises StageMissing for the tables of the ablation in a study of bare activations, which has none, and
        for those of the final site in a study of another one; ValueError for an unknown name.
        """
        if name not in _TABLES:
            raise ValueError(f"there is no table {name!r}; the tables are {', '.join(_TABLES)}")
        if _TABLES[name] in stages.skipped(self.config):
            stages.require(self.config, self.workdir, _TABLES[name])
        if name in _FINAL_SITE_ONLY and self.site != convnext.FINAL_SITE:
            raise stages.StageMissing(
                f"this study of {self.site} has no table {name!r}: it exists at {convnext.FINAL_SITE} only; "
                "the table feature_space has the features chosen"
            )
        return artifacts.read_table(self._folder(_TABLES[name]) / f"{name}.parquet")

    def preprocess(self, paths, boxes=None) -> np.ndarray:
        """Image files as the classifier's input, uint8 [B, S, S, 3]: decoded, banner cut, cropped, fitted.

        boxes: 1-based inclusive (xmin, ymin, xmax, ymax) of each file in its pixels, [B, 4]. Give them where
        the study was made with data.crop=box: without them the whole photo is used. Raises ValueError that
        names a file which is no usable image, and if there are not as many boxes as files.
        """
        data = self.config["data"]
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if boxes is not None and len(boxes) != len(paths):
            raise ValueError(f"preprocess got {len(boxes)} boxes for {len(paths)} files")
        images = []
        for i, path in enumerate(paths):
            try:
                rgb = decode.decode_rgb(epath.Path(path).read_bytes(), banner_px=data["banner_px"])
                if boxes is not None:
                    rgb = decode.crop_box(rgb, boxes[i])
            except decode.BadImage as error:
                raise ValueError(f"{os.fspath(path)}: {error}") from error
            images.append(decode.fit_square(rgb, data["image_size"], data["fit"]))
        return np.stack(images)

    def suppress(self, features, keep=0.0, *, mode: str = "delta") -> edit.FeatureEdit:
        """Remove features, or scale them by `keep`; see jsae.ablation.edit."""
        return edit.suppress(self.sae, features, keep, mode=mode)

    def keep(self, keep, *, mode: str = "delta") -> edit.FeatureEdit:
        """Scale every feature by its entry of `keep` [F]."""
        return edit.keep(self.sae, keep, mode=mode)

    def keep_only(self, features, *, mode: str = "delta") -> edit.FeatureEdit:
        """Remove every feature but the named ones."""
        return edit.keep_only(self.sae, features, mode=mode)

    def clamp(self, features, value, *, mode: str = "delta") -> edit.FeatureEdit:
        """Set features to `value` (raw units) at every position."""
        return edit.clamp(self.sae, features, value, mode=mode)

    def steer(self, features, amount, *, mode: str = "delta") -> edit.FeatureEdit:
        """Add `amount` (raw units) to features at every position."""
        return edit.steer(self.sae, features, amount, mode=mode)

    def show(self, feature: int, n_patches: int = 12) -> card.FeatureCard:
        """A card of one feature, which a notebook displays: numbers, top patches with maps, effect.

        Raises ValueError for a feature that the SAE does not have, StageMissing before the analysis.
        """
        stages.require(self.config, self.workdir, "analysis")
        rows = self._rows("features", feature)
        if not rows:
            raise ValueError(f"there is no feature {feature}; the SAE has 0 to {self.sae.n_features - 1}")
        patches = sorted(self._rows("top_patches", feature), key=lambda row: row["rank"])[:n_patches]
        store, images, effects = self.activations("test"), None, []
        if "classifier" not in stages.skipped(self.config):
            images = [self.data["test"].images[patch["image"]] for patch in patches]
        if (self._folder("ablation") / "feature_space.parquet").exists():
            wanted = ("map", "top_class", "margin")
            effects = [
                row
                for row in self._rows("feature_space", feature)
                if (row["scope"], row["target"], row["measure"]) == wanted
            ]
        with jax.default_matmul_precision("float32"):
            acts = [store.read(patch["image"], patch["image"] + 1)[0] for patch in patches]
            maps = np.asarray(self.sae.encode(np.stack(acts)))[..., feature] if acts else []
        return card.make_card(
            rows[0],
            patches,
            images=images,
            maps=maps,
            grid=store.grid,
            effect=effects[0] if effects else None,
        )

    def _rows(self, name: str, feature: int) -> list[dict]:
        table = self.table(name)
        return table.filter(pc.equal(table["feature"], feature)).to_pylist()

    def _folder(self, stage: str) -> epath.Path:
        return stages.folder(self.config, self.workdir, stage)
