"""Planted directions: does the way in which counterfactual pairs are measured find what is surely there?

Into a finished drawn study's activations go P orthonormal directions, one for each part of the drawings:

    x' = x + sum_p alpha_p 1[part p covers at least 10% of the cell] d_p

with alpha_p such that each adds `dose` of the variance (`metrics.planted_strengths`). A dictionary trained on
x' (train) is measured on pairs of which one direction is all the difference, A0 = x and A1 = x + alpha_p
1[covered] d_p of the same x (test), read by the fixed head of pooled d_p . x. Features are chosen on train.

    oracle                            holds the d_p, f = (x - mean) . d_p: it must have share 1 and leak 0
                                      (m = 1: it has one feature for each part)
    relu_l1, topk, ... matryoshka     every variant of `jsae.sae.VARIANTS`, trained on x'; those of
                                      config.planted.tuned with the coefficient at which as many features
                                      are active on train as topk.k
    frozen_decoder, frozen_encoder    the study's variant with one random matrix: it must fail

In WORKDIR/planted: planted.parquet, one row for each dictionary, dose and m, written after each training; a
run that was stopped goes on with the first one that is missing. results.json has the dose curves at m = 1.
Doses below 1/C lie under a random direction's own variance.
"""

import copy
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jsae import metrics
from jsae.ablation.counterfactual.comparators import Projections
from jsae.activations import Encoded, Reducer
from jsae.analysis import cells
from jsae.experiments import planted_table
from jsae.experiments.planted_table import FOLDER, FROZEN, NAMES, TABLE
from jsae.runtime import mesh as meshes
from jsae.runtime import settings, stage_config, stages
from jsae.runtime.context import RunContext
from jsae.runtime.pytrees import pytree
from jsae.sae import VARIANTS, model, train, variants
from jsae.sae import run as sae_run
from jsae.sae.batches import resident
from jsae.study import Study

RANGES = {
    "doses": settings.POSITIVE,
    "m": settings.COUNT,
    "n_images": settings.COUNT,
    "n_epochs": settings.POSITIVE,
}
COEFFICIENTS = ("l1", "l0")  # settings of the variants that have a penalty
MAX_TRIES = 5  # of a coefficient
_L0_TOLERANCE = 0.03  # relative
_CHUNK = 256  # images


class Ground(NamedTuple):
    """Where directions are planted.

    Attributes:
      directions: orthonormal rows [P, C].
      covered: split -> whether part p covers a cell, bool [n, H, W, P]; "train" and "test".
      images: split -> numbers of the images on which pairs are measured, rising.
    """

    directions: np.ndarray
    covered: dict[str, np.ndarray]
    images: dict[str, np.ndarray]


@pytree
class MeasurePairs(Reducer):
    """Effects of single features summed over images, [P, F] float64, and `metrics.SaeSums` of x'.

    Effect j of pair p in an image is the mean over cells of f_j(A1) - f_j(A0), times w_j . d_p.

    Attributes:
      directions: orthonormal rows [P, C].
      planted: alpha_p d_p [P, C].
      covered: of all images of the split, bool [n, H, W, P].
    """

    directions: jax.Array
    planted: jax.Array
    covered: jax.Array

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> dict[str, Any]:
        """Nothing yet."""
        return {"effects": 0.0, "fit": None}

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, dict[str, Any]]:
        """One more encoding for each pair, and one with all directions planted."""
        covered = self.covered[batch.images]  # [B, H, W, P]
        cells_of_image = covered.shape[1] * covered.shape[2]
        real = batch.real.astype(jnp.float32)[:, None, None, None]

        def pooled_change(pair):
            where, planted = pair  # [B, H, W], [C]
            feats = dictionary.encode(batch.acts + where[..., None] * planted[None, None, None, :])
            return (real * (feats - batch.feats)).sum((0, 1, 2)) / cells_of_image  # [F]

        change = jax.lax.map(pooled_change, (jnp.moveaxis(covered, -1, 0), self.planted))  # [P, F]
        effects = change * jnp.matmul(self.directions, dictionary.w_dec.T)
        x = batch.acts + jnp.matmul(covered.astype(jnp.float32), self.planted)
        x, mask = x.reshape(-1, x.shape[-1]), jnp.repeat(batch.real.astype(jnp.float32), cells_of_image)
        feats = dictionary.encode(x)
        fit = metrics.sae_sums(x, dictionary.decode(feats), feats, mask, dictionary.mean)
        return carry, {"effects": effects, "fit": fit}

    def add(self, total: dict[str, Any], part: dict[str, Any], rows: slice, n: int) -> dict[str, Any]:
        """One more batch."""
        fit = metrics.add_sums(total["fit"], part["fit"])
        return {"effects": total["effects"] + np.asarray(part["effects"], np.float64), "fit": fit}


class Trainer:
    """Trains one variant on activations with planted directions; compiled once for all doses.

    Args:
      study: whose train activations are taken.
      c: `config.sae` of the dictionary.
      seed: of its initialisation and order.
    """

    def __init__(self, study: Study, c: Any, seed: int) -> None:
        store, self._mesh, self._c, self._seed = study.activations("train"), mesh_of(study), c, seed
        self._shape = resident.shape_of(store.n_vectors, store.n_channels, c.batch_size)
        per_epoch = self._shape.steps_per_epoch
        self._recipe = sae_run.recipe_of(
            c,
            n_steps=max(1, round(c.n_epochs * per_epoch)),
            dead_after_steps=max(1, round(c.dead_after_epochs * per_epoch)),
        )
        sizes = {"n_channels": store.n_channels, "n_features": c.n_features}
        key, variant = jax.random.key(seed), variants.of_section(c)

        def fresh(mean, scale):
            return train.init_state(
                model.init(key, variant=variant, mean=mean, scale=scale, **sizes), self._recipe
            )

        abstract = jax.eval_shape(fresh, store.mean, np.float32(1))
        self._fresh = jax.jit(fresh, out_shardings=train.shardings(self._mesh, abstract))
        self._trained = train.make_trained(self._mesh, abstract.sae)
        self._per_dispatch = c.steps_per_dispatch or 10
        self._dispatch = train.make_dispatch(
            self._mesh, abstract.sae, self._recipe, self._shape, self._per_dispatch
        )

    def __call__(
        self,
        vectors: Callable[[], Iterator[np.ndarray]],
        mean: np.ndarray,
        context: RunContext,
        label: str,
    ) -> tuple[model.SAE, float]:
        """An SAE of `vectors()`, chunks [n, C] of this mean [C], and l0 in its last dispatch of steps.

        Raises preemption.Preempted if a stop was asked for.
        """
        squares = sum(np.square(x - mean[None, :]).sum(dtype=np.float64) for x in vectors())
        scale = np.sqrt(squares / (self._shape.n_vectors * self._shape.n_channels))
        source = resident.Resident(self._mesh, vectors(), self._shape, seed=self._seed)
        state, step, n_steps = self._fresh(mean, np.float32(scale)), 0, self._recipe.n_steps
        with context.progress(n_steps, label=label) as progress:
            while step < n_steps:
                context.check()
                window = source.at(step)
                n = min(self._per_dispatch, window.stop - step, n_steps - step)
                state, values = self._dispatch(state, window.x, window.mask, window.order, window.first, n)
                step += n
                progress.update(n, fvu=float(values["fvu"][n - 1]), l0=float(values["l0"][n - 1]))
        source.close()
        if int(state.bad_total):
            context.log.warning("%s: %d steps were refused", label, int(state.bad_total))
        return self._trained(state), float(np.mean(values["l0"][:n]))


def tuned(make: Callable[[float], tuple[Any, float]], coefficient: float, l0: float) -> tuple[Any, float]:
    """What `make` returns, with the coefficient at which its l0 on train is nearest to `l0`.

    By secants of log l0 over log coefficient; within 3%, or the nearest of `MAX_TRIES`.

    Args:
      make: coefficient -> (something, its l0 on train).
      coefficient: to begin with.
      l0: wanted.
    """
    points: list[tuple[float, float]] = []
    best: tuple[float, Any, float] | None = None
    for _ in range(MAX_TRIES):
        made, found = make(coefficient)
        points.append((np.log(coefficient), np.log(max(found, 0.01) / l0)))
        if best is None or abs(points[-1][1]) < best[0]:
            best = abs(points[-1][1]), made, coefficient
        if best[0] <= _L0_TOLERANCE:
            break
        x, y = points[-1]
        x_before, y_before = points[-2] if len(points) > 1 else (x - 1, y + 1)
        slope = np.clip((y - y_before) / (x - x_before), -4, -0.25)
        coefficient = float(np.exp(x - y / slope))
    assert best is not None
    return best[1:]


def mesh_of(study: Study) -> Any:
    """The study's mesh, or one of the first local device."""
    return study.mesh or meshes.make_mesh(1, 1, devices=jax.local_devices()[:1])


def run(config: Any, workdir: Any, context: RunContext | None = None, names: Sequence[str] = NAMES) -> None:
    """Make and measure the dictionaries `names` at every dose of config.planted; rows that are there stay.

    Raises:
      ValueError: an unknown name or setting, or data that say nowhere where parts are.
      stages.StageMissing: no finished activations.
    """
    check_config(config, names)
    workdir, context = epath.Path(workdir), context or RunContext()
    upstream = stages.require(config, workdir, "activations")["digest"]
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    study = Study(workdir, stages.plain(config), mesh)
    measure(
        study, config, workdir / FOLDER, functools.partial(covered_cells, study), upstream, context, names
    )


def check_config(config: Any, names: Sequence[str] = NAMES) -> None:
    """Raise ValueError for a name that is none of NAMES, or settings of config.planted that cannot be."""
    for name in names:
        settings.check_choice("--variants", name, NAMES)
    settings.check("config.planted", config.planted, RANGES)
    if 1 not in config.planted.m:
        raise ValueError(f"config.planted.m={config.planted.m} must have a 1, for the dose curves")
    for name in config.planted.variants:
        settings.check_choice("config.planted.variants", name, tuple(VARIANTS))
    penalised = [name for name in VARIANTS if coefficient_of(config.sae[name])]
    for name in config.planted.tuned:
        settings.check_choice("config.planted.tuned", name, penalised)
        section = section_of(config, name)[name]
        positive = {str(coefficient_of(section)): settings.POSITIVE}
        settings.check(f"config.planted.variants.{name}.{name}", section, positive)
    for name in set(names) - {"oracle"}:
        point = copy.deepcopy(config)
        point.sae = section_of(config, name)
        sae_run.check_config(point)


def section_of(config: Any, name: str) -> Any:
    """`config.sae` of a dictionary: the study's, with the variant's settings of config.planted.variants."""
    c = copy.deepcopy(config.sae)
    c.frozen = FROZEN.get(name, "")
    c.variant = config.sae.variant if c.frozen else name
    c.n_epochs = config.planted.n_epochs
    c.update(config.planted.variants.get(c.variant, {}))
    return c


def coefficient_of(section: Any) -> str | None:
    """Which setting of a variant's section is the coefficient of its penalty; None: it has none."""
    return next((name for name in COEFFICIENTS if name in section), None)


def covered_cells(study: Study) -> dict[str, np.ndarray]:
    """Which cells each part covers, split -> bool [n, H, W, P]. Raises ValueError without masks of parts."""
    stores = {split: study.activations(split) for split in ("train", "test")}
    found = cells.of_stores(study.data, stores, study.model.stride_px(study.site))
    if found is None or len(found["train"].names) == 1:
        raise ValueError("the data of this study say nowhere where parts are; directions go into drawn ones")
    covered = {}
    for split, store in stores.items():
        starts = range(0, store.n_images, _CHUNK)
        numbers = [np.arange(start, min(start + _CHUNK, store.n_images)) for start in starts]
        parts = np.concatenate([found[split](images)[0][..., :-1] for images in numbers])
        covered[split] = parts.reshape(store.n_images, *store.grid, -1)
    return covered


def measure(
    study: Study,
    config: Any,
    folder: epath.Path,
    find_covered: Callable[[], dict[str, np.ndarray]],
    upstream: str,
    context: RunContext,
    names: Sequence[str] = NAMES,
) -> None:
    """`run` on an opened study; `find_covered` is asked once, and only if something is missing."""
    made_of = _digest(config, upstream)
    rows = meshes.of_writer(lambda: planted_table.rows_of(folder / TABLE.file, made_of))
    there, ground = {(row["dictionary"], row["dose"]) for row in rows}, None
    for name in names:
        missing = [dose for dose in config.planted.doses if (name, dose) not in there]
        if not missing:
            continue
        ground = ground or plant(study, find_covered(), config, context)
        trainer = None if name == "oracle" else Trainer(study, section_of(config, name), config.seed)
        for dose in missing:
            context.check()
            rows += _rows(study, ground, config, trainer, name, dose, context)
            planted_table.write(folder, rows, made_of)
    meshes.wait_for_all("planted: written")  # the table is read next


def plant(study: Study, covered: dict[str, np.ndarray], config: Any, context: RunContext) -> Ground:
    """Random orthonormal directions, one for each part that covers some cells of both splits, not all.

    Raises ValueError if fewer than two parts do, or there are more parts than channels.
    """
    n_images = {split: len(array) for split, array in covered.items()}
    images = {
        split: np.unique(np.linspace(0, n - 1, min(n, config.planted.n_images)).astype(np.int64))
        for split, n in n_images.items()
    }
    shares = [array[images[split]].mean((0, 1, 2)) for split, array in covered.items()]
    shares.append(covered["train"].mean((0, 1, 2)))
    known = np.all([(share > 0) & (share < 1) for share in shares], axis=0)
    n_channels = study.activations("train").n_channels
    if not 2 <= known.sum() <= n_channels:
        raise ValueError(
            f"{known.sum()} of {len(known)} parts cover some cells and not all of them; planting directions "
            f"needs at least 2 and at most {n_channels}, the channels"
        )
    if not known.all():
        context.log.warning("planted: %d parts cover no cell of the images, or all", (~known).sum())
    rng = np.random.default_rng([config.seed, 0x706C6E74])
    directions = np.linalg.qr(rng.normal(size=(n_channels, n_channels)))[0][: known.sum()]
    return Ground(directions, {split: array[..., known] for split, array in covered.items()}, images)


def _rows(
    study: Study, ground: Ground, config: Any, trainer: Trainer | None, name: str, dose: float, context
) -> list[dict[str, Any]]:
    """The rows of one dictionary at one dose, one for each m."""
    start = time.monotonic()
    store, covered = study.activations("train"), ground.covered["train"]
    q = covered.mean((0, 1, 2), dtype=np.float64)  # [P]
    strengths = metrics.planted_strengths(q, store.scale**2 * store.n_channels, dose)
    planted = strengths[:, None] * ground.directions  # [P, C]
    label, coefficient = f"planted: {name} at {100 * dose:g}%", None
    context.log.info("%s", label)
    if trainer is None:
        dictionary = Projections(*(jnp.asarray(a, jnp.float32) for a in (ground.directions, store.mean)))
    else:
        vectors = functools.partial(_vectors, store, covered, planted.astype(np.float32))
        mean = (store.mean + q @ planted).astype(np.float32)
        dictionary, coefficient = _trained(study, config, name, trainer, (vectors, mean, context, label))
    single, fit = {}, {}
    directions, added = (jnp.asarray(a, jnp.float32) for a in (ground.directions, planted))
    for split in ("train", "test"):
        where, images = jnp.asarray(ground.covered[split]), ground.images[split]
        found = study.run_pass(
            split,
            {"pairs": MeasurePairs(directions=directions, planted=added, covered=where)},
            dictionary=dictionary,
            images=images,
            batch_size=config.analysis.batch_size,
            context=context,
            label=f"{label}, {split}",
        )["pairs"]
        totals = strengths * ground.covered[split][images].mean((1, 2), dtype=np.float64).sum(0)  # [P]
        single[split] = found["effects"] / totals[:, None]  # [P, F]
        fit = metrics.sae_metrics(found["fit"])  # of test, which comes last
    of_all = {"dictionary": name, "dose": float(dose), "n_parts": len(q), "n_features": dictionary.n_features}
    of_all |= {"coefficient": coefficient, "l0": fit["l0"], "fvu": None if trainer is None else fit["fvu"]}
    of_all |= {"detection_limit": None, "seconds": time.monotonic() - start}
    rows = []
    for m in config.planted.m if trainer else (1,):
        share, leak = metrics.chosen_shares(single["train"], single["test"], m)
        on_train = metrics.isolated(*metrics.chosen_shares(single["train"], single["train"], m))
        numbers = {"share": share, "leak": leak, "isolated": metrics.isolated(share, leak)}
        numbers |= {"isolated_train": on_train}
        means = {name: float(values.mean()) for name, values in numbers.items()}
        rows.append(of_all | {"m": int(m)} | means | {"smallest_share": float(share.min())})
    return rows


def _trained(study: Study, config: Any, name: str, trainer: Trainer, arguments: tuple) -> tuple[Any, Any]:
    """A dictionary and its coefficient, None if it has none; tuned if config.planted.tuned says so."""
    c = section_of(config, name)
    section, key = c[c.variant], coefficient_of(c[c.variant])
    if name not in config.planted.tuned:
        return trainer(*arguments)[0], section[key] if key else None

    def make(coefficient: float) -> tuple[Any, float]:
        section[key] = coefficient
        return Trainer(study, c, config.seed)(*arguments)

    return tuned(make, section[key], config.sae.topk.k)


def _vectors(store, covered: np.ndarray, planted: np.ndarray) -> Iterator[np.ndarray]:
    """The vectors x' of a store with directions [P, C] planted, float32 [n, C], some images at a time."""
    for start in range(0, store.n_images, _CHUNK):
        stop = min(start + _CHUNK, store.n_images)
        where = covered[start:stop].reshape(-1, len(planted)).astype(np.float32)
        yield store.read(start, stop).reshape(-1, planted.shape[1]) + where @ planted


def _digest(config: Any, upstream: str) -> str:
    """Of all that a row depends on, but which doses there are."""
    plain = stages.plain(config)
    kept = {
        name: {k: v for k, v in plain[name].items() if k not in (*stage_config.NO_RESULT, "doses")}
        for name in ("planted", "sae")
    }
    return stages.digest_of(json.loads(json.dumps(kept | {"seed": plain["seed"]})), upstream)
