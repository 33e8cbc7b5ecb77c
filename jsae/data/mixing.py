"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): each image with the one after it in the batch.

A batch is a slice of a random permutation, so the next image is a random one. The share is drawn for each
example by its key; the partner depends on the batch as a whole, and on nothing about how it is dealt.
"""

import jax
import jax.numpy as jnp

MIXES = ("none", "mixup", "cutmix")


def mix(
    keys: jax.Array, images: jax.Array, targets: jax.Array, *, kind: str, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mix images and their targets.

    Args:
      keys: one per row [B].
      images: [B, S, S, 3].
      targets: class probabilities [B, L].
      kind: "none", "mixup" (weighted mean) or "cutmix" (a rectangle of the partner).
      alpha: an image keeps a share drawn from Beta(alpha, alpha); the larger alpha, the nearer to a half.

    Returns (images, targets) of the same shapes. Raises ValueError on an unknown kind or alpha <= 0.
    """
    if kind not in MIXES:
        raise ValueError(f"mix={kind!r} is unknown; valid: {', '.join(MIXES)}")
    if kind == "none":
        return images, targets
    if alpha <= 0:
        raise ValueError(f"mix_alpha={alpha} must be positive with mix={kind!r}")
    share = jax.vmap(lambda key: jax.random.beta(jax.random.fold_in(key, 0), alpha, alpha))(keys)
    partner, partner_targets = jnp.roll(images, -1, 0), jnp.roll(targets, -1, 0)
    if kind == "mixup":
        kept = share[:, None, None, None].astype(images.dtype)
        images = kept * images + (1 - kept) * partner
    else:
        inside = jax.vmap(lambda key, area: rectangle(jax.random.fold_in(key, 1), images.shape[1], area))(
            keys, 1 - share
        )
        images = jnp.where(inside[:, :, :, None], partner, images)
        share = 1 - inside.mean((1, 2))  # as cut: the rectangle may have met the border
    return images, share[:, None] * targets + (1 - share)[:, None] * partner_targets


def rectangle(
    key: jax.Array, size: int, area: jax.Array | float, aspect: jax.Array | float = 1.0
) -> jax.Array:
    """bool [size, size], true inside a rectangle of about `area` (a share) and width / height = `aspect`.

    Its centre is anywhere in the image; what reaches beyond the border is cut off.
    """
    centre = jax.random.uniform(key, (2,)) * size
    half = 0.5 * size * jnp.sqrt(area) * jnp.stack([aspect**-0.5, aspect**0.5])
    at = jnp.arange(size) + 0.5
    inside = jnp.abs(at[None, :] - centre[:, None]) < half[:, None]  # [2, size]
    return inside[0][:, None] & inside[1][None, :]
