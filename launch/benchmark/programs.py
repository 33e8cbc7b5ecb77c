"""The jitted programs of the product with abstract arguments, to be lowered or compiled without being run.

`catalogue(sizes)` is {name: make}; make(devices) is (jitted function, arguments) on a mesh of the first of
them, as many as the name's last part says: "_8x1" is 8 along `data`, 1 along `model`.

    classifier_step_ARCHpx_bB_TYPE   one training step with augmentation, AdamW and the mean of the weights
    prediction_, extraction_         of one batch, float32
    sae_VARIANT_nN_TYPE              a dispatch of training steps of N vectors, dense; counts are of one step
    sae_topk_fF_nN_TYPE              the same for a large dictionary
    sae_VARIANT_sparse_nN_TYPE       the same on rows of active features
    sae_topk_deterministic_nN_TYPE   the path that deterministic runs choose on the devices
    evaluation_nN                    of one batch of about N vectors
    analysis_, ablation_             the passes of these stages, one batch each
    closed_form                      all features of one batch
    edits_                           the network with features removed, forward and gradient, many at once
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import fgvc_convnext_tiny
from jsae import classifier, edits
from jsae.ablation import splice
from jsae.ablation.all_features import closed_form, forward_pass
from jsae.ablation.all_features.reducer import MeasureAllFeatures
from jsae.ablation.counterfactual import drawings
from jsae.ablation.counterfactual import effects as counterfactual
from jsae.ablation.feature_space import pairs
from jsae.ablation.input_space import patches
from jsae.ablation.mediation import changed
from jsae.ablation.mediation import passes as mediation
from jsae.activations import reducers
from jsae.activations import run as extraction
from jsae.analysis import images as analysis_images
from jsae.analysis import nearest, strength, top_patches
from jsae.analysis.pixel_maps.attribution import METHODS
from jsae.classifier import evaluate as prediction
from jsae.classifier import run as classifier_run
from jsae.classifier import train as classifier_train
from jsae.classifier.forward import LogitsAndActs, LogitsFromActs
from jsae.runtime import mesh as meshes
from jsae.sae import evaluate, model, train, variants
from jsae.sae.batches import blocks

Program = tuple[Callable, tuple]
MESHES = ("1x1", "8x1", "4x2", "1x8")
TYPES = {"bf16": "bfloat16", "f32": "float32"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the programs are made for.

    Attributes:
      arch, depths, dims: the network, by name or by these (`classifier.make_model`).
      image_px, n_images: its input, and the images of a batch.
      site: whose activations the SAE is of.
      n_classes, n_features, k: L, F and k.
      vectors: N of the training steps.
      large: F of dictionaries that need many devices, at the largest N.
    """

    arch: str = "tiny"
    depths: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    image_px: int = 224
    n_images: int = 128
    site: str = "stage4"
    n_classes: int = 100
    n_features: int = 6144
    k: int = 32
    vectors: tuple[int, ...] = (4096, 16384)
    large: tuple[int, ...] = (2**17, 2**20)

    @property
    def network(self) -> classifier.model.Trainable:
        return classifier.make_model(self.arch, self.n_classes, depths=self.depths, dims=self.dims)

    @property
    def acts(self) -> tuple[int, ...]:
        """[B, H, W, C] of a batch at the site."""
        grid = self.network.grid(self.site, (self.image_px, self.image_px))
        return (self.n_images, *grid, self.network.channels(self.site))


SMALL = Sizes(  # for tests
    *("small", (0, 1, 0, 1), (8, 8, 16, 16)),
    image_px=64,
    n_images=8,
    n_classes=5,
    n_features=64,
    k=4,
    vectors=(128,),
    large=(),
)


def catalogue(sizes: Sizes) -> dict[str, Callable[[Sequence[Any]], Program]]:
    """All programs by name."""
    made: dict[str, Callable[[Mesh], Program]] = {}
    of_batch = f"{sizes.arch}{sizes.image_px}_b{sizes.n_images}"
    for name, kind in TYPES.items():
        made[f"classifier_step_{of_batch}_{name}"] = functools.partial(_classifier_step, sizes, kind)
    made |= {
        f"prediction_{of_batch}": functools.partial(_prediction, sizes),
        f"extraction_{of_batch}": functools.partial(_extraction, sizes),
    }
    for variant in variants.VARIANTS:
        for n in sizes.vectors:
            for name, kind in TYPES.items():
                paths = ["", "_sparse"] if variants.make(variant).sparse is not None else [""]
                for path in paths + ["_deterministic"] * (variant == "topk"):
                    make = functools.partial(_sae_dispatch, sizes, variant, n, kind, path)
                    made[f"sae_{variant}{path}_n{n}_{name}"] = make
    for f in sizes.large:
        of_size, n = dataclasses.replace(sizes, n_features=f), sizes.vectors[-1]
        made[f"sae_topk_f{f}_n{n}_bf16"] = functools.partial(
            _sae_dispatch, of_size, "topk", n, "bfloat16", ""
        )
    for n in sizes.vectors:
        made[f"evaluation_n{n}"] = functools.partial(_evaluation, sizes, n)
    for makers, prefix in ((_ANALYSIS, "analysis"), (_ABLATION, "ablation"), (_EDITS, "edits")):
        made |= {f"{prefix}_{name}": functools.partial(make, sizes) for name, make in makers.items()}
    made["closed_form"] = functools.partial(_closed_form, sizes)

    def on(make: Callable[[Mesh], Program], shape: str, devices: Sequence[Any]) -> Program:
        data, model_axis = map(int, shape.split("x"))
        mesh = meshes.make_mesh(data, model_axis, devices=devices[: data * model_axis])
        return make(mesh)

    return {
        f"{name}_{shape}": functools.partial(on, make, shape)
        for name, make in made.items()
        for shape in MESHES
    }


def _abstract(tree: Any, sharding: Any) -> Any:
    """The tree's shapes, all with one sharding, or each with its own of a tree of them."""
    if isinstance(sharding, NamedSharding):
        one = sharding
        sharding = jax.tree.map(lambda _: one, tree)
    place = lambda a, s: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a), sharding=s)  # noqa: E731
    return jax.tree.map(place, tree, sharding)


def _dealt(mesh: Mesh, **arrays: tuple[tuple[int, ...], Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch {name: (shape, type)} over `data`."""
    found = {name: jax.ShapeDtypeStruct(*array) for name, array in arrays.items()}
    return _abstract(found, meshes.sharded(mesh))


def _params(sizes: Sizes, mesh: Mesh) -> classifier.Params:
    made = jax.eval_shape(lambda key: classifier.init(key, sizes.network), jax.random.key(0))
    return _abstract(made, meshes.replicated(mesh))


def _classifier_step(sizes: Sizes, dtype: str, mesh: Mesh) -> Program:
    config = fgvc_convnext_tiny.get_config(".").classifier
    config.dtype, config.batch_size = dtype, sizes.n_images
    recipe = classifier_run._recipe(config, 6667)
    state = jax.eval_shape(
        lambda key: classifier_train.init_state(key, sizes.network, recipe), jax.random.key(0)
    )
    b, s = sizes.n_images, sizes.image_px
    batch = _dealt(mesh, image=((b, s, s, 3), jnp.uint8), label=((b,), jnp.int32), index=((b,), jnp.int32))
    whole = meshes.replicated(mesh)
    step = jax.jit(
        classifier_train.make_step(sizes.network, recipe, 0),
        in_shardings=(whole, meshes.sharded(mesh)),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
    return step, (_abstract(state, whole), batch)


def _images(sizes: Sizes, mesh: Mesh) -> jax.ShapeDtypeStruct:
    shape = (sizes.n_images, sizes.image_px, sizes.image_px, 3)
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=meshes.sharded(mesh))


def _prediction(sizes: Sizes, mesh: Mesh) -> Program:
    return prediction.make_predict(mesh), (_params(sizes, mesh), _images(sizes, mesh))


def _extraction(sizes: Sizes, mesh: Mesh) -> Program:
    return extraction.make_forward(mesh, sizes.site), (_params(sizes, mesh), _images(sizes, mesh))


def _fresh(sizes: Sizes, variant: str) -> model.SAE:
    """An abstract SAE."""
    settings = {"k": sizes.k} if "k" in variants.settings_of(variant) else {}
    return jax.eval_shape(
        lambda key: model.init(
            key,
            n_channels=sizes.acts[-1],
            n_features=sizes.n_features,
            variant=variants.make(variant, **settings),
            mean=jnp.zeros(sizes.acts[-1]),
            scale=1.0,
        ),
        jax.random.key(0),
    )


def _sae_dispatch(sizes: Sizes, variant: str, n: int, precision: str, path: str, mesh: Mesh) -> Program:
    sae, sparse = _fresh(sizes, variant), {"": False, "_sparse": True}.get(path)  # None: as the device has it
    recipe = train.Recipe(n_steps=1000, learning_rate=1e-3, dead_after_steps=100, precision=precision)
    length = n // 16  # a window of four steps
    shape = blocks.Shape(blocks.N_BLOCKS * length, sizes.acts[-1], n, length=length, dtype="bfloat16")
    state = jax.eval_shape(lambda sae: train.init_state(sae, recipe), sae)
    window = _dealt(
        mesh,
        x=((blocks.N_BLOCKS, length, sizes.acts[-1]), jnp.bfloat16),
        mask=((blocks.N_BLOCKS, length), jnp.float32),
        order=((blocks.N_BLOCKS, length), jnp.int32),
    )
    whole = jax.ShapeDtypeStruct((), jnp.int32, sharding=meshes.replicated(mesh))
    states = _abstract(state, train.shardings(mesh, state))
    dispatch = train.make_dispatch(mesh, sae, recipe, shape, 10, sparse)
    return dispatch, (states, *(window[name] for name in ("x", "mask", "order")), whole, whole)


def _on_mesh(sizes: Sizes, mesh: Mesh, variant: str = "topk") -> model.SAE:
    """An abstract SAE dealt over a mesh, as `run_pass` and `map_rows` get it."""
    sae = _fresh(sizes, variant)
    return dataclasses.replace(_abstract(sae, model.shardings(sae, mesh)), mesh=mesh)


def _pass(sizes: Sizes, n_images: int, made: Callable, mesh: Mesh) -> Program:
    """One step of `run_pass` with reducers made(mesh)."""
    whole, sae = meshes.replicated(mesh), _on_mesh(sizes, mesh)
    kinds = jax.tree.map(lambda leaf: _abstract(leaf, whole), tuple(made(mesh)))
    carries = jax.eval_shape(lambda kinds, sae: tuple(kind.carry(sae) for kind in kinds), kinds, sae)

    def placed(leaf: Any) -> Any:
        by_feature = leaf.ndim and leaf.shape[0] == sizes.n_features
        return _abstract(leaf, NamedSharding(mesh, PartitionSpec("model" if by_feature else None)))

    batch = _dealt(
        mesh,
        acts=((n_images, *sizes.acts[1:]), jnp.float32),
        labels=((n_images,), jnp.int32),
        images=((n_images,), jnp.int32),
        mask=((n_images,), jnp.float32),
    )
    return reducers._step, (kinds, sae, jax.tree.map(placed, carries), batch)


def _evaluation(sizes: Sizes, n: int, mesh: Mesh) -> Program:
    cells, data = math.prod(sizes.acts[1:3]), mesh.shape["data"]
    return _pass(sizes, -(-n // (cells * data)) * data, lambda mesh: [evaluate.MeasureReconstruction()], mesh)


def _head(sizes: Sizes, mesh: Mesh) -> Any:
    params = _params(sizes, mesh)
    head = jax.eval_shape(lambda params: params.model.linear_head(params.variables), params)
    return _abstract(head, meshes.replicated(mesh))


def _array(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array that is whole on every device."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.replicated(mesh))


def _key(mesh: Mesh) -> Any:
    return _abstract(jax.eval_shape(lambda: jax.random.key(0)), meshes.replicated(mesh))


def _rest(sizes: Sizes, mesh: Mesh) -> LogitsFromActs:
    return LogitsFromActs(_params(sizes, mesh), sizes.site)


def _forward(sizes: Sizes, mesh: Mesh) -> LogitsAndActs:
    return LogitsAndActs(_params(sizes, mesh), sizes.site)


def _analysis_train(sizes: Sizes, mesh: Mesh) -> Program:
    made = [strength.MeasureStrength(sizes.n_classes), strength.KeepPooled(2**28)]
    return _pass(sizes, sizes.n_images, lambda mesh: made, mesh)


def _analysis_test(sizes: Sizes, mesh: Mesh) -> Program:
    made = [strength.MeasureStrength(sizes.n_classes), top_patches.KeepTopPatches(16), strength.KeepPooled()]
    return _pass(sizes, sizes.n_images, lambda mesh: made, mesh)


def _analysis_nearest(sizes: Sizes, mesh: Mesh) -> Program:
    n = sizes.n_features // mesh.shape["model"]
    return _pass(
        sizes, sizes.n_images, lambda mesh: [nearest.CountTogether(_array(mesh, (n,), jnp.int32))], mesh
    )


def _analysis_pixel_maps(sizes: Sizes, mesh: Mesh) -> Program:
    b, side = min(sizes.n_images, 32), sizes.image_px
    batch = _dealt(
        mesh,
        images=((b, side, side, 3), jnp.uint8),
        peaks=((b, 2), jnp.int32),
        **dict.fromkeys(("features", "rows"), ((b,), jnp.int32)),
        **dict.fromkeys(("foreground", "part"), ((b, side, side), jnp.bool_)),
    )
    step = analysis_images._scores(sizes.site, sizes.network.stride_px(sizes.site), METHODS[0])
    return step, (_params(sizes, mesh), _on_mesh(sizes, mesh), (_array(mesh, (side, side)),) * 2, batch)


def _ablation_test(sizes: Sizes, mesh: Mesh) -> Program:
    def made(mesh: Mesh) -> list:
        n_here, platform = sizes.n_images // mesh.size or 1, mesh.devices.flat[0].platform
        return [
            splice.MeasureSplice(_rest(sizes, mesh), _array(mesh, (sizes.acts[-1],))),
            pairs.FindPairs(_array(mesh, (32,), jnp.int32)),
            MeasureAllFeatures(
                _head(sizes, mesh),
                _array(mesh, (sizes.n_features,), jnp.int32),
                _key(mesh),
                n_joint=32,
                block=closed_form.block_features(n_here, sizes.n_classes, platform),
            ),
        ]

    return _pass(sizes, sizes.n_images, made, mesh)


def _ablation_feature_space(sizes: Sizes, mesh: Mesh) -> Program:
    (b, h, w, c), number = sizes.acts, ((sizes.n_images,), jnp.int32)
    one_map = ((b, h, w), jnp.float32)
    batch = _dealt(
        mesh,
        acts=(sizes.acts, jnp.float32),
        auroc=((b, c), jnp.float32),
        size=one_map,
        **dict.fromkeys(("feature", "image", "label", "top_class"), number),
        **{f"j_{scope}": number for scope in pairs.SCOPES},
        **{f"size_{scope}": one_map for scope in pairs.SCOPES},
    )
    fixed = (_array(mesh, (c,)), _array(mesh, (c, c)), _key(mesh))
    return pairs._remove, (_rest(sizes, mesh), _on_mesh(sizes, mesh), *fixed, batch)


def _input_batch(sizes: Sizes, mesh: Mesh, **more: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Images with the area that is changed in them."""
    b, s = sizes.n_images, sizes.image_px
    return _dealt(mesh, images=((b, s, s, 3), jnp.uint8), area=((b, s, s), jnp.uint8), **more)


def _ablation_input_clean(sizes: Sizes, mesh: Mesh) -> Program:
    fixed = (_forward(sizes, mesh), _on_mesh(sizes, mesh), _array(mesh, (24,), jnp.int32))
    return patches._clean, (*fixed, {"images": _images(sizes, mesh)})


def _ablation_input_blurred(sizes: Sizes, mesh: Mesh) -> Program:
    batch = _input_batch(
        sizes,
        mesh,
        feature=((sizes.n_images,), jnp.int32),
        active=(sizes.acts[:3], jnp.float32),
    )
    matrices = [_array(mesh, (sizes.image_px, sizes.image_px))] * 4
    return patches._blurred, (_forward(sizes, mesh), _on_mesh(sizes, mesh), *matrices, batch)


def _ablation_all_by_passes(sizes: Sizes, mesh: Mesh) -> Program:
    b, h, w, _ = sizes.acts
    names = ("feature", "prediction", *forward_pass.TARGETS)
    batch = _dealt(
        mesh,
        **dict.fromkeys(("acts", "without"), (sizes.acts, jnp.float32)),
        map=((b, h, w), jnp.float32),
        **dict.fromkeys(names, ((b,), jnp.int32)),
    )
    return forward_pass._remove, (_rest(sizes, mesh), _on_mesh(sizes, mesh), batch)


def _ablation_all_clean(sizes: Sizes, mesh: Mesh) -> Program:
    return _pass(sizes, sizes.n_images, lambda mesh: [forward_pass._KeepClean(_rest(sizes, mesh))], mesh)


def _mediation_batch(sizes: Sizes, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    b = sizes.n_images
    return _input_batch(sizes, mesh, labels=((b,), jnp.int32), rivals=((b, 2), jnp.int32))


def _input_acts(sizes: Sizes, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Clean activations and those of two inputs [3, B, H, W, C]."""
    return jax.ShapeDtypeStruct((3, *sizes.acts), jnp.float32, sharding=meshes.sharded(mesh, 1))


def _ablation_mediation_acts(sizes: Sizes, mesh: Mesh) -> Program:
    side = _array(mesh, (sizes.image_px, sizes.image_px))
    change = changed.Change(side, side, _array(mesh, (3,)))
    return mediation._activations, (_forward(sizes, mesh), change, _mediation_batch(sizes, mesh))


def _ablation_mediation_rank(sizes: Sizes, mesh: Mesh) -> Program:
    fixed = (_rest(sizes, mesh), _head(sizes, mesh), _on_mesh(sizes, mesh))
    return mediation._rank, (*fixed, _input_acts(sizes, mesh), _mediation_batch(sizes, mesh))


def _ablation_mediation_score(sizes: Sizes, mesh: Mesh) -> Program:
    sets = tuple(
        _array(mesh, (2, 1 + mediation.N_RANDOM, min(m, sizes.k)), jnp.int32) for m in mediation.SIZES
    )
    fixed = (_rest(sizes, mesh), _on_mesh(sizes, mesh), sets)
    return mediation._score, (*fixed, _input_acts(sizes, mesh), _mediation_batch(sizes, mesh))


def _twins(sizes: Sizes, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    b = sizes.n_images
    both = dict.fromkeys(("without", "with"), (sizes.acts, jnp.float32))
    return _dealt(mesh, **both, pair=((b,), jnp.int32), classes=((b, 2), jnp.int32))


def _effects_rest(sizes: Sizes, mesh: Mesh) -> counterfactual.Rest:
    return counterfactual.Rest(_params(sizes, mesh), _head(sizes, mesh), sizes.site)


def _ablation_twins_seen(sizes: Sizes, mesh: Mesh) -> Program:
    return drawings._seen, (_forward(sizes, mesh), _images(sizes, mesh))


def _ablation_twins_survey(sizes: Sizes, mesh: Mesh) -> Program:
    return counterfactual._survey, (_effects_rest(sizes, mesh), _on_mesh(sizes, mesh), _twins(sizes, mesh))


def _ablation_twins_own(sizes: Sizes, mesh: Mesh) -> Program:
    sets = (_array(mesh, (64,), jnp.int32), _array(mesh, (8, 64, 64)))
    return counterfactual._own, (
        _effects_rest(sizes, mesh),
        _on_mesh(sizes, mesh),
        *sets,
        _twins(sizes, mesh),
    )


def _ablation_twins_score(sizes: Sizes, mesh: Mesh) -> Program:
    sets = (_array(mesh, (64,), jnp.int32), _array(mesh, (8, 4, 64)), _array(mesh, (8, 64)))
    fixed = (0, _effects_rest(sizes, mesh), _on_mesh(sizes, mesh), *sets)
    return counterfactual._score, (*fixed, _twins(sizes, mesh))


def _closed_form(sizes: Sizes, mesh: Mesh) -> Program:
    """Effects of all features of a batch, by closed form, for three targets."""
    (b, *_, c), f = sizes.acts, sizes.n_features
    sae = _on_mesh(sizes, mesh)
    by_both = NamedSharding(mesh, PartitionSpec("data", "model"))
    strengths = jax.ShapeDtypeStruct((b, f), jnp.float32, sharding=by_both)
    images = _dealt(mesh, pooled=((b, c), jnp.float32), labels=((b,), jnp.int32), groups=((b,), jnp.int32))

    def measure(head, sae, strengths, tops, images):
        return closed_form.moments(
            head,
            sae.w_dec,
            images["pooled"],
            strengths,
            images["labels"],
            images["labels"],
            tops,
            groups=images["groups"],
            n_groups=1,
            block=closed_form.block_features(
                b // mesh.size or 1, sizes.n_classes, mesh.devices.flat[0].platform
            ),
            mesh=None if mesh.size == 1 else mesh,
        )

    return jax.jit(measure), (_head(sizes, mesh), sae, strengths, _array(mesh, (f,), jnp.int32), images)


def _edits_forward(sizes: Sizes, mesh: Mesh) -> Program:
    def logits(params, sae, keep, images):
        edited = {sizes.site: edits.keep(sae, keep)}
        return classifier.apply(params, prediction.augment.normalise(images), edits=edited)[0]

    fixed = (_params(sizes, mesh), _on_mesh(sizes, mesh))
    return jax.jit(logits), (*fixed, _array(mesh, (sizes.n_features,)), _images(sizes, mesh))


def _edits_gradient(sizes: Sizes, mesh: Mesh) -> Program:
    """The derivative of a logit with respect to what is kept of every feature."""
    forward, arguments = _edits_forward(sizes, mesh)

    def of_keep(params, sae, keep, images):
        return jax.grad(lambda keep: forward(params, sae, keep, images)[:, 0].sum())(keep)

    return jax.jit(of_keep), arguments


def _edits_many(sizes: Sizes, mesh: Mesh) -> Program:
    """Sixteen masks at once."""
    forward, (params, sae, _, images) = _edits_forward(sizes, mesh)
    many = jax.jit(jax.vmap(forward, in_axes=(None, None, 0, None)))
    return many, (params, sae, _array(mesh, (16, sizes.n_features)), images)


_ANALYSIS = {
    "train": _analysis_train,
    "test": _analysis_test,
    "nearest": _analysis_nearest,
    "pixel_maps": _analysis_pixel_maps,
}
_ABLATION = {
    "test": _ablation_test,
    "feature_space": _ablation_feature_space,
    "input_clean": _ablation_input_clean,
    "input_blurred": _ablation_input_blurred,
    "all_clean": _ablation_all_clean,
    "all_by_passes": _ablation_all_by_passes,
    "mediation_acts": _ablation_mediation_acts,
    "mediation_rank": _ablation_mediation_rank,
    "mediation_score": _ablation_mediation_score,
    "twins_seen": _ablation_twins_seen,
    "twins_survey": _ablation_twins_survey,
    "twins_own": _ablation_twins_own,
    "twins_score": _ablation_twins_score,
}
_EDITS = {"forward": _edits_forward, "gradient": _edits_gradient, "many": _edits_many}
