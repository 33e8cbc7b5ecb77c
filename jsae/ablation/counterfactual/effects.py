"""What changes of features do to the logits of twins: the network from the site on, in batches of drawings.

With A0, A1 the activations without and with the part, f0, f1 their features and w the decoder rows, features
S are moved as A0 + sum_{j in S} (f1 - f0)_j w_j, and c = e_b - e_a reads the logits. Where only pooling and a
linear head follow on the site (`Rest.head`), the grid is pooled before anything is moved: pooling is linear,
so a move costs O(C L) and the effects of all features come from one matrix product. Elsewhere every move is a
forward pass from the site on, and single features are ranked to first order before the best are run.

Everything is in float32 products; a dictionary dealt over a mesh stays dealt.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jsae.ablation.counterfactual.drawings import Drawn
from jsae.classifier import Head, Params, head_logits
from jsae.classifier.forward import LogitsFromActs
from jsae.runtime import mesh as meshes
from jsae.runtime.batches import map_rows
from jsae.runtime.context import RunContext
from jsae.runtime.pytrees import pytree
from jsae.sae import dealt
from jsae.study import Study


@pytree
class Rest:
    """The network from the site on.

    Attributes:
      params: of the classifier.
      head: where only pooling and this follow on the site, else None.
      site: static.
    """

    params: Params
    head: Head | None
    site: str = dataclasses.field(metadata={"static": True})

    def pool(self, grid: jax.Array) -> jax.Array:
        """Acts or features [B, H, W, .] as moves take them: [B, 1, 1, .] where there is a head."""
        return grid if self.head is None else grid.mean((1, 2), keepdims=True)

    def __call__(self, acts: jax.Array) -> jax.Array:
        """Logits [B, L] of acts [B, H, W, C], pooled or not."""
        if self.head is None:
            return LogitsFromActs(self.params, self.site)(acts)
        return head_logits(self.head, acts.mean((1, 2)))


def rest_of(study: Study) -> Rest:
    """The rest of a study's classifier."""
    head = study.model.linear_head(study.params.variables) if study.has_closed_form else None
    return Rest(study.params, head, study.site)


@dataclasses.dataclass(frozen=True)
class Sets:
    """Sets of features that are moved together, K of them for each of P pairs.

    Attributes:
      members: pair by pair, set by set, int feature numbers.
      sizes: how many each of the K sets was to have.
      is_signed: whether features may be negative, so that 0 is nothing special.
      of_faith: which of the K sets faithfulness is measured on.
      choices: how each of the K sets was chosen; (): all of them by single features.
    """

    members: list[list[np.ndarray]]
    sizes: tuple[int, ...]
    is_signed: bool = False
    of_faith: int = 0
    choices: tuple[str, ...] = ()

    @functools.cached_property
    def features(self) -> np.ndarray:
        """All features that occur, rising, int32 [U]."""
        return np.unique(np.concatenate([each for of_pair in self.members for each in of_pair])).astype(
            np.int32
        )

    @functools.cached_property
    def masks(self) -> np.ndarray:
        """1 for the members of a set, float32 [P, K, U]."""
        inside = [[np.isin(self.features, each) for each in of_pair] for of_pair in self.members]
        return np.array(inside, np.float32)


@dataclasses.dataclass(frozen=True)
class Passes:
    """Passes over the twins of a split: one row per pair and drawing, pairs slowest.

    Attributes:
      rest: the network from the site on.
      batch_size: rows at once.
      mesh: None for one local device.
      context: shows progress and stops.
    """

    rest: Rest
    batch_size: int
    mesh: Mesh | None = None
    context: RunContext | None = None

    def over(self, drawn: Drawn, label: str, step: Any, *arguments: Any) -> dict[str, np.ndarray]:
        """What step(rest, *arguments, batch) returns, name -> [P, n, ...]."""
        classes = drawn.labels
        if self.mesh is not None:
            arguments = meshes.replicate(self.mesh, arguments)

        def read(rows: np.ndarray) -> dict[str, np.ndarray]:
            pairs, drawings = np.divmod(rows, drawn.n)
            seen = [drawn.of(drawn.pairs[pair]) for pair in pairs]
            without, with_part = (
                np.stack([two[i].acts[drawing] for two, drawing in zip(seen, drawings, strict=True)])
                for i in range(2)
            )
            pairs = pairs.astype(np.int32)
            return {"without": without, "with": with_part, "pair": pairs, "classes": classes[pairs]}

        n = len(drawn.pairs) * drawn.n
        found = map_rows(
            lambda batch: step(self.rest, *arguments, batch),
            read,
            n,
            batch_size=self.batch_size,
            mesh=self.mesh,
            context=self.context,
            label=f"counterfactual: {label}, {drawn.split}",
            unit="pair",
        )
        return {
            name: part.reshape(len(drawn.pairs), drawn.n, *part.shape[1:]) for name, part in found.items()
        }

    def survey(self, dictionary: Any, drawn: Drawn, label: str) -> dict[str, np.ndarray]:
        """All features one by one, name -> [P, n, F].

        effect: s of the feature moved alone, exact with a head, else to first order (`single_effects`).
        change, before: means over cells of f1 - f0 and of f0. size: mean over cells of |f1 - f0| times ||w||.
        """
        return self.over(drawn, f"features of {label}", _survey, dictionary)

    def own(self, dictionary: Any, drawn: Drawn, sets: Sets, label: str) -> np.ndarray:
        """Effects s [P, n, K] of the sets of each pair in its own drawings, by forward passes."""
        return self.over(drawn, label, _own, dictionary, sets.features, sets.masks)["effect"]

    def score(
        self, dictionary: Any, drawn: Drawn, sets: Sets, before: np.ndarray, label: str
    ) -> dict[str, np.ndarray]:
        """Sets moved; of pairs P and drawings n.

        Args:
          dictionary: encode and w_dec, raw units.
          drawn: what it is scored on.
          sets: of features.
          before: [P, U], the value that "mean" sets features to.
          label: of the progress.

        Returns:
          effect: s of every pair's sets in every pair, [P, n, P, K], the sets' pairs behind.
          lost: c . (l(A1) - l(A1 - sum (f1 - f0) w)) of the pair's own sets, [P, n, K].
          moved: changes of the logits from A1 with the set `of_faith` put to zero, to `before`, to f0,
            [P, n, 3, L].
          without, with: means over cells of f0 and f1, [P, n, U].
        """
        masks, step = sets.masks, functools.partial(_score, sets.of_faith)
        found = self.over(drawn, label, step, dictionary, sets.features, masks, np.float32(before))
        effect = found["effect"]
        return found | {"effect": effect.reshape(*effect.shape[:2], *masks.shape[:2])}


def _contrast(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """c . l of logits [B, L] and classes [B, 2] -> [B]."""
    read = jnp.take_along_axis(logits, classes, axis=-1)
    return read[:, 1] - read[:, 0]


def single_effects(rest: Rest, w_dec: jax.Array, batch: dict, change: jax.Array) -> jax.Array:
    """s of every feature moved alone [B, F]; `change` is f1 - f0 [B, H, W, F], pooled where there is a head.

    With a head exact: with P the centred pooled A0, V the centred rows and G the kernel under the norm's
    scale, c . l = (P + d V) . G c / sqrt(|P + d V|^2 / C + eps) + constant. Without one the first-order
    attribution of the change by the mean of the gradients at A0 and A1.
    """
    without, classes = rest.pool(batch["without"]), batch["classes"]
    if rest.head is None:
        gradient = jax.grad(lambda acts: _contrast(rest(acts), classes).sum())
        slope = (gradient(without) + gradient(batch["with"])) / 2
        return jnp.einsum("bhwf,bhwf->bf", slope @ w_dec.T, change)
    pooled, change, kernel = without[:, 0, 0], change[:, 0, 0], rest.head.kernel
    norm = rest.head.norm
    if norm is not None:
        pooled, kernel = pooled - pooled.mean(-1, keepdims=True), norm.scale[:, None] * kernel
        w_dec = w_dec - w_dec.mean(-1, keepdims=True)
    reading = (kernel[:, classes[:, 1]] - kernel[:, classes[:, 0]]).T  # [B, C]
    base, step = (pooled * reading).sum(-1, keepdims=True), change * (reading @ w_dec.T)
    if norm is None:
        return step
    squared = jnp.square(pooled).sum(-1, keepdims=True)
    moved = squared + 2 * change * (pooled @ w_dec.T) + change**2 * jnp.square(w_dec).sum(-1)[None, :]
    scale, scale_moved = (
        jax.lax.rsqrt(jnp.maximum(each, 0) / len(norm.scale) + norm.eps) for each in (squared, moved)
    )
    return (base + step) * scale_moved - base * scale


def _features(rest: Rest, dictionary: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
    """f0 and f1 [B, H, W, F], raw units, not pooled."""
    return dictionary.encode(batch["without"]), dictionary.encode(batch["with"])


@jax.jit
def _survey(rest: Rest, dictionary: Any, batch: dict) -> dict[str, jax.Array]:
    with jax.default_matmul_precision("float32"):
        f0, f1 = _features(rest, dictionary, batch)
        change, w_dec = f1 - f0, jnp.asarray(dictionary.w_dec)
        return {
            "effect": single_effects(rest, w_dec, batch, rest.pool(change)),
            "change": change.mean((1, 2)),
            "before": f0.mean((1, 2)),
            "size": jnp.abs(change).mean((1, 2)) * jnp.linalg.norm(w_dec, axis=-1)[None, :],
        }


def _moves(rest: Rest, dictionary: Any, features: jax.Array, batch: dict):
    """(f0, f1 [B, h, w, U], acts + amount @ rows as a function of both), pooled where there is a head."""
    f0, f1 = (
        dealt.feature_maps(dictionary, rest.pool(each), features)
        for each in _features(rest, dictionary, batch)
    )
    rows = dealt.decoder_rows(dictionary, features)  # [U, C]
    return f0, f1, lambda acts, amount: rest(acts + jnp.matmul(amount, rows, precision="float32"))


@jax.jit
def _own(rest: Rest, dictionary: Any, features: jax.Array, masks: jax.Array, batch: dict):
    with jax.default_matmul_precision("float32"):
        f0, f1, moved = _moves(rest, dictionary, features, batch)
        acts, classes = rest.pool(batch["without"]), batch["classes"]
        clean = _contrast(rest(acts), classes)

        def effect(mask):  # [B, U], of each row its own
            return _contrast(moved(acts, (f1 - f0) * mask[:, None, None, :]), classes) - clean

        return {"effect": jax.lax.map(effect, jnp.moveaxis(masks[batch["pair"]], 1, 0)).T}


@functools.partial(jax.jit, static_argnums=0)
def _score(of_faith, rest, dictionary, features, masks, before, batch) -> dict[str, jax.Array]:
    with jax.default_matmul_precision("float32"):
        f0, f1, moved = _moves(rest, dictionary, features, batch)
        without, with_part, classes = rest.pool(batch["without"]), rest.pool(batch["with"]), batch["classes"]
        change, own = f1 - f0, masks[batch["pair"]]  # [B, K, U]
        logits = rest(with_part)
        clean = _contrast(rest(without), classes), _contrast(logits, classes)

        def effect(mask):  # [U]
            return _contrast(moved(without, change * mask[None, None, None, :]), classes) - clean[0]

        def lost(mask):  # [B, U]
            return clean[1] - _contrast(moved(with_part, -change * mask[:, None, None, :]), classes)

        mask = own[:, of_faith, None, None, :]
        values = (jnp.zeros_like(f1), jnp.broadcast_to(before[batch["pair"]][:, None, None, :], f1.shape), f0)
        put = [moved(with_part, (value - f1) * mask) - logits for value in values]
        return {
            "effect": jax.lax.map(effect, masks.reshape(-1, masks.shape[-1])).T,
            "lost": jax.lax.map(lost, jnp.moveaxis(own, 1, 0)).T,
            "moved": jnp.stack(put, axis=1),
            "without": f0.mean((1, 2)),
            "with": f1.mean((1, 2)),
        }
