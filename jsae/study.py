"""An opened study: its classifier, SAE, stores, images and tables, each read once, when first asked for.

    study = jsae.load("runs/demo")
    logits, acts = study.classifier(images)
    feats = study.sae.encode(acts[study.site])
    ablated, _ = study.classifier(images, edits={study.site: study.suppress([12, 407])})

The stages analysis, ablation and report and the experiments work on the same object that a notebook gets.
With a `mesh` the SAE lies dealt over its axis `model` and passes are dealt over both axes, so that a
dictionary that only fits on M devices is used on M devices.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jsae import classifier as classifiers
from jsae import edits
from jsae import sae as saes
from jsae.activations import ActivationStore, Reducer, run_pass
from jsae.classifier import inputs
from jsae.data import cache, decode, identity, twins
from jsae.data.drawn_splits import SPLITS
from jsae.runtime import artifacts, logs, paths, remote, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.runtime.paths import resolve

if TYPE_CHECKING:
    from jsae.report.card import FeatureCard

_PARTS = "the data of this study say nowhere where parts are (masks, or boxes)"
_UNDRAWN = "its data are not drawn, so no image has a twin without a part"
_BARE = "it needs images, and this study is of bare activations"


class Listed(NamedTuple):
    """A table in the list: which module declares it as TABLE, who writes it, why it may be missing.

    `folder` is where it lies in the workdir, where that is not the stage's.
    """

    module: str
    stage: str
    why_missing: str = ""
    folder: str = ""


TABLES = {
    **{
        name: Listed("jsae.classifier.evaluate", "classifier", "this study is of bare activations")
        for name in ("per_class", "confusion", "calibration")
    },
    "features": Listed("jsae.analysis.features", "analysis"),
    "top_patches": Listed("jsae.analysis.top_patches", "analysis"),
    "nearest": Listed("jsae.analysis.nearest", "analysis"),
    "localisation": Listed("jsae.analysis.localisation", "analysis", _PARTS),
    "parts": Listed("jsae.analysis.parts", "analysis", _PARTS),
    "pixel_maps": Listed("jsae.analysis.pixel_maps.table", "analysis", _BARE),
    "monosemanticity": Listed(
        "jsae.analysis.monosemanticity",
        "analysis",
        "it is made with config.analysis.embedding_workdir, a study of another seed",
    ),
    "feature_space": Listed("jsae.ablation.feature_space.table", "ablation"),
    "input_space": Listed("jsae.ablation.input_space.table", "ablation", _BARE),
    "all_features": Listed("jsae.ablation.all_features.table", "ablation"),
    "all_features_by_class": Listed("jsae.ablation.all_features.table_by_class", "ablation"),
    "cumulative": Listed(
        "jsae.ablation.all_features.cumulative",
        "ablation",
        "it exists at a classifier's last site only; feature_space has the features chosen",
    ),
    "counterfactual": Listed("jsae.ablation.counterfactual.table", "ablation", _UNDRAWN),
    "counterfactual_response": Listed("jsae.ablation.counterfactual.response", "ablation", _UNDRAWN),
    "mediation": Listed("jsae.ablation.mediation.table", "ablation", _BARE),
    "baselines": Listed("jsae.experiments.baselines", "ablation", "python -m launch.baselines writes it"),
    "planted": Listed(
        "jsae.experiments.planted_table", "activations", "python -m launch.planted writes it", "planted"
    ),
    "shortcut": Listed("jsae.experiments.shortcut", "sae", "python -m launch.shortcut writes it", "shortcut"),
    "seeds": Listed("jsae.experiments.seeds", "classifier", "python -m launch.seeds writes it", "seeds"),
    "visaebench": Listed("jsae.experiments.visaebench", "sae", "python -m launch.visaebench writes it"),
    "sweep": Listed("jsae.experiments.sweep", "sae", "python -m launch.sweep writes it"),
}


def load(
    workdir: str | os.PathLike, *, data_dir: str | os.PathLike | None = None, mesh: Mesh | None = None
) -> "Study":
    """Open the study in `workdir`; weights are restored from its orbax checkpoints.

    Args:
      workdir: as it was moved, copied or linked.
      data_dir: where its images lie, if that is not where they lay when it was made.
      mesh: devices to deal the SAE over (`jsae.runtime.mesh.make_mesh`); None for one local device.

    Raises FileNotFoundError if there is no study, or its classifier, extraction or SAE is not finished.
    """
    remote.check(workdir)
    workdir = paths.resolve(workdir)
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} holds no study (no config.json); run launch.pipeline first")
    config = artifacts.read_json(workdir / "config.json")
    if data_dir is not None:
        config["data"]["dir"] = paths.absolute(data_dir)
    for stage in ("classifier", "activations", "sae"):
        if stage not in stages.skipped(config):
            stages.require(config, workdir, stage)
    return Study(workdir, config, mesh)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The study's classifier (EMA weights); call it on images.

    Attributes:
      params: weights and their network.
      image_px: side S of the images that it was trained on; None where that is not known.
    """

    params: classifiers.Params
    image_px: int | None = None

    def __call__(
        self,
        images: ArrayLike,
        *,
        edits: Mapping | None = None,
        start: str | None = None,
        normalised: bool = False,
        any_size: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [B, L] and a dict site -> activations [B, H, W, C].

        Args:
          images: RGB [B, S, S, 3], uint8 (`Study.preprocess` makes it), or floats already normalised
            (`jsae.data.augment.normalise`); with `start`, raw activations [B, H, W, C] of that site.
          edits: site -> function of its activations. Edits that are pytrees (jsae.edits) run under
            one jit; any other function works as well, outside it.
          start: a site to continue from.
          normalised: floats are normalised although their values look like pixels of 0..1 or 0..255.
          any_size: images (activations) of another side than S (another grid) are wanted.

        Raises TypeError for what are no images or no edits; ValueError for an unknown site, a wrong shape or
        side, and values that cannot be normalised pixels (jsae.classifier.inputs).
        """
        edits = _as_edits(edits)
        if start is None:
            images = inputs.pixels(images, self.image_px, normalised=normalised, any_size=any_size)
        else:
            images = inputs.activations(images, self.params.model, start, self.image_px, any_size=any_size)
        arrays = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(edits))
        run = _jitted if arrays else _apply
        return run(self.params, images, edits, start)


def _as_edits(edits) -> dict:
    """The edits by site. Raises TypeError that says what is expected."""
    if edits is not None and not isinstance(edits, Mapping):
        raise TypeError(
            f"edits are a dict site -> edit, for example {{study.site: study.suppress([12])}}; got "
            f"{type(edits).__name__}"
        )
    for site, each in (edits or {}).items():
        if not callable(each):
            raise TypeError(f"the edit at {site!r} is a function of activations, not {type(each).__name__}")
    return dict(edits or {})


def _apply(params, images, edits, start):
    with jax.default_matmul_precision("float32"):
        return classifiers.apply(params, images, edits=edits, start=start)


_jitted = jax.jit(_apply, static_argnums=3)


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What `load` returns; everything is read when first asked for.

    Attributes:
      workdir: the study's folder.
      config: its resolved config, a nested dict.
      mesh: the devices it is opened on; None for one local device.
      sae_folder: another SAE of the same activations, one of a sweep for example; None: the study's.
    """

    workdir: epath.Path
    config: dict
    mesh: Mesh | None = None
    sae_folder: epath.Path | None = None

    def __repr__(self) -> str:
        return f"Study({os.fspath(self.workdir)!r})"

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The classifier; of bare activations with a head, that head, to be called with start="arrays".

        Raises StageMissing in a study of bare activations without one.
        """
        bare = "classifier" in stages.skipped(self.config)
        if "ablation" in stages.skipped(self.config):
            self._needs_images("no classifier")
        if bare:
            params = classifiers.load_head(self._folder("activations"))
        else:
            params = classifiers.load(self._folder("classifier"))
        if self.mesh is not None:
            params = meshes.replicate(self.mesh, meshes.to_host(params))
        return Classifier(params, None if bare else self.config["data"]["image_size"])

    @functools.cached_property
    def sae(self) -> saes.SAE:
        """The trained SAE, its dictionary dealt over the mesh."""
        return saes.load(self.sae_folder or self._folder("sae"), self.mesh)

    @property
    def params(self) -> classifiers.Params:
        """The classifier's weights and what it is, on the mesh."""
        return self.classifier.params

    @property
    def model(self) -> classifiers.Model:
        """What the classifier is, without its weights."""
        return self.params.model

    @property
    def has_closed_form(self) -> bool:
        """Whether only pooling and a linear head follow on the SAE's site."""
        last = self.site == self.model.sites[-1]
        return last and self.model.linear_head(self.params.variables) is not None

    @property
    def site(self) -> str:
        """The site whose activations the SAE was trained on."""
        return self.config["activations"]["site"]

    @functools.cached_property
    def data(self) -> dict[str, cache.Split]:
        """The splits "train", "val" and "test" with images, labels, ids and, where drawn, part masks.

        Raises StageMissing in a study of bare activations, which has no images.
        """
        self._needs_images("no images; study.activations(split) has labels and ids")
        config = self.config
        if os.environ.get("JSAE_CACHE"):  # the study may have been made on a machine with another disk
            config = config | {"data": config["data"] | {"cache_dir": ""}}
        return identity.splits_of(config, self.workdir)

    @property
    def twins(self) -> twins.Twins | None:
        """The renderer of a drawn study with its pairs of twins; None where nothing is drawn."""
        return twins.twins_of(self.config["data"])

    @functools.cached_property
    def summary(self) -> dict:
        """summary.json."""
        return artifacts.read_json(self.workdir / "summary.json")

    def activations(self, split: str) -> ActivationStore:
        """The stored activations of a split. Raises ValueError for another name than train, val and test."""
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
        return self._stores[split]

    @functools.cached_property
    def _stores(self) -> dict[str, ActivationStore]:
        return {split: ActivationStore.open(self._folder("activations") / split) for split in SPLITS}

    def table(self, name: str) -> pa.Table:
        """A result table as a pyarrow Table; `TABLES` lists them, `jsae.tables.documentation` their columns.

        Raises StageMissing for a table that this study does not have, with the reason; ValueError for an
        unknown name.
        """
        path = self._table_path(name)
        if not path.exists():
            listed = TABLES[name]
            if name != "cumulative" or self.has_closed_form:  # else no run will make it
                stages.require(self.config, self.workdir, listed.stage)
            raise stages.StageMissing(
                f"this study of {self.site} has no table {name!r}: {listed.why_missing or 'it is gone'}"
            )
        return artifacts.read_table(path)

    def has_table(self, name: str) -> bool:
        """Whether the table was written. Raises ValueError for an unknown name."""
        return self._table_path(name).exists()

    def _table_path(self, name: str) -> epath.Path:
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; the tables are {', '.join(TABLES)}")
        if name == "sweep":
            return self.workdir / "sweep" / "table.parquet"
        listed = TABLES[name]
        folder = self.workdir / listed.folder if listed.folder else self._folder(listed.stage)
        return folder / f"{name}.parquet"

    def run_pass(
        self,
        split: str,
        reducers: Mapping[str, Reducer],
        *,
        batch_size: int,
        dictionary: Any = None,
        images: np.ndarray | None = None,
        context: RunContext | None = None,
        label: str = "",
        keep: Any = None,
    ) -> dict[str, Any]:
        """Pass over a split on the study's mesh (`jsae.activations.run_pass`); `dictionary` None: its SAE."""
        return run_pass(
            self.activations(split),
            self.sae if dictionary is None else dictionary,
            reducers,
            batch_size=batch_size,
            mesh=self.mesh,
            images=images,
            context=context,
            label=label,
            keep=keep,
        )

    def _needs_images(self, lacks: str) -> None:
        if "classifier" in stages.skipped(self.config):
            raise stages.StageMissing(
                f"this study is of bare activations, {self.config['data']['dir']}: it has {lacks}"
            )

    def preprocess(
        self, paths: paths.PathLike | Iterable[paths.PathLike], boxes: Sequence | np.ndarray | None = None
    ) -> np.ndarray:
        """Image files as the classifier's input, uint8 [B, S, S, 3]: decoded, banner cut, cropped, fitted.

        boxes: 1-based inclusive (xmin, ymin, xmax, ymax) of each file in its pixels, [B, 4]. Give them where
        the study was made with data.crop=box: without them the whole photo is used, and a warning says so.

        Raises TypeError for what names no files, ValueError that names a file which is no usable image, for
        no files at all, and if boxes are not [B, 4]; StageMissing in a study of bare activations.
        """
        self._needs_images("no images to prepare others like")
        data = self.config["data"]
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
        paths = list(paths) if isinstance(paths, Iterable) else [paths]
        if not all(isinstance(p, str | os.PathLike) for p in paths):
            raise TypeError(
                f"preprocess reads files: give their names, not {type(paths[0]).__name__}; pixels in hand "
                f"are uint8 [B, {data['image_size']}, {data['image_size']}, 3]"
            )
        if not paths:
            raise ValueError("preprocess got no files")
        if boxes is not None and np.shape(boxes) != (len(paths), 4):
            raise ValueError(
                f"boxes are (xmin, ymin, xmax, ymax) of each file, [{len(paths)}, 4]; got {len(boxes)} boxes "
                f"for {len(paths)} files, of shape {list(np.shape(boxes))}"
            )
        if boxes is None and data["crop"] == "box":
            logs.get_logger().warning(
                "preprocess: this study cut its photos to their boxes (data.crop=box), and none are given"
            )
        images = []
        for i, path in enumerate(paths):
            try:
                rgb = decode.decode_rgb(resolve(path).read_bytes(), banner_px=data["banner_px"])
                if boxes is not None:
                    rgb = decode.crop_box(rgb, boxes[i])
            except decode.BadImage as error:
                raise ValueError(f"{os.fspath(path)}: {error}") from error
            images.append(decode.fit_square(rgb, data["image_size"], data["fit"]))
        return np.stack(images)

    def suppress(
        self, features: ArrayLike, keep: ArrayLike = 0.0, *, mode: str = "delta"
    ) -> edits.FeatureEdit:
        """Remove features, or scale them by `keep`; see jsae.edits."""
        return edits.suppress(self.sae, features, keep, mode=mode)

    def keep(self, keep: ArrayLike, *, mode: str = "delta") -> edits.FeatureEdit:
        """Scale every feature by its entry of `keep` [F]."""
        return edits.keep(self.sae, keep, mode=mode)

    def keep_only(self, features: ArrayLike, *, mode: str = "delta") -> edits.FeatureEdit:
        """Remove every feature but the named ones."""
        return edits.keep_only(self.sae, features, mode=mode)

    def clamp(self, features: ArrayLike, value: ArrayLike, *, mode: str = "delta") -> edits.FeatureEdit:
        """Set features to `value` (raw units) at every position."""
        return edits.clamp(self.sae, features, value, mode=mode)

    def steer(self, features: ArrayLike, amount: ArrayLike, *, mode: str = "delta") -> edits.FeatureEdit:
        """Add `amount` (raw units) to features at every position."""
        return edits.steer(self.sae, features, amount, mode=mode)

    def set_to(self, features: ArrayLike, values: ArrayLike, *, mode: str = "delta") -> edits.FeatureEdit:
        """Set features to another run's values, [B, H, W, F] or [B, H, W, n] (raw units); see jsae.edits."""
        return edits.set_to(self.sae, features, values, mode=mode)

    def show(self, feature: int, n_patches: int = 12) -> "FeatureCard":
        """A card of one feature, which a notebook displays: numbers, top patches with maps, effect.

        The effect stands beside its control for the features that were ablated one by one; for the others it
        is that of the table of all features, where the study has one.

        Raises TypeError unless both are whole numbers, ValueError for a feature that the SAE does not have or
        no patch, StageMissing before the analysis.
        """
        from jsae.report import card

        feature, n_patches = _whole(feature, "show takes one feature,"), _whole(n_patches, "n_patches is")
        if not 0 <= feature < self.sae.n_features:
            raise ValueError(f"there is no feature {feature}; the SAE has 0 to {self.sae.n_features - 1}")
        if n_patches < 1:
            raise ValueError(f"n_patches={n_patches} must be at least 1")
        stages.require(self.config, self.workdir, "analysis")
        patches = sorted(self._rows("top_patches", feature), key=lambda row: row["rank"])[:n_patches]
        store, images = self.activations("test"), None
        if "classifier" not in stages.skipped(self.config):
            images = [self.data["test"].images[patch["image"]] for patch in patches]
        wanted = {"scope": "map", "target": "own_class", "measure": "margin"}
        effects = [
            row
            for row in self._rows("feature_space", feature)
            if all(row[name] == value for name, value in wanted.items())
        ]
        with jax.default_matmul_precision("float32"):
            acts = [store.read(patch["image"], patch["image"] + 1)[0] for patch in patches]
            maps = np.asarray(self.sae.encode(np.stack(acts)))[..., feature] if acts else []
        return card.make_card(
            self._rows("features", feature)[0],
            patches,
            images=images,
            maps=maps,
            grid=store.grid,
            effect=next(iter(effects), None),
            all_features=next(iter(self._rows("all_features", feature)), None),
        )

    def pixel_map(
        self, features: ArrayLike, images: ArrayLike, method: str = "occlusion", *, n_points: int = 16
    ) -> np.ndarray:
        """Which pixels a feature's peak depends on: attribution [n, B, S, S], signed, in raw units.

        The peak is the cell where the feature is largest on the image; what is attributed is what the image
        has more than its blur of a cell's width (jsae.analysis.pixel_maps.attribution; also for the cost).

        Args:
          features: n feature numbers.
          images: as `classifier` takes them, [B, S, S, 3].
          method: "occlusion", "integrated" or "smooth".
          n_points: of the path of "integrated", or draws of noise of "smooth".

        Raises TypeError and ValueError as `classifier` and `suppress` do, ValueError for an unknown method,
        StageMissing in a study of bare activations.
        """
        from jsae.analysis.pixel_maps import attribution

        self._needs_images("no images")
        attribution.check_method(method)
        numbers = edits.check_features(self.sae, features)
        pixels = inputs.pixels(images, self.classifier.image_px)
        stride_px = self.model.stride_px(self.site)
        how = (self.site, stride_px, method, n_points)
        return np.stack(
            [
                attribution.at_peak(self.params, self.sae, pixels, jnp.full(len(pixels), f), how)
                for f in numbers
            ]
        )

    def _rows(self, name: str, feature: int) -> list[dict]:
        """Rows of a feature; none where the study does not have the table."""
        if not self.has_table(name):
            return []
        table = self.table(name)
        return table.filter(pc.equal(table["feature"], feature)).to_pylist()

    def _folder(self, stage: str) -> epath.Path:
        return stages.folder(self.config, self.workdir, stage)


def _whole(value, what: str) -> int:
    """A whole number, numpy's too. Raises TypeError for anything else, True and 12.0 included."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{what} a whole number like 12; got {value!r}")
    return int(value)
