"""What takes the place of a patch: the image blurred, its mean colour, or its cells shuffled.

blur      Gaussian, sigma in pixels: takes the detail away and leaves the colour
mean      the image's mean colour: takes everything away, and may put an edge there
shuffle   the image with its cells in another order: puts other detail of the same image there
"""

import jax
import jax.numpy as jnp
import numpy as np

FILLS = ("blur", "mean", "shuffle")


def check(fill: str) -> None:
    """Raise ValueError unless `fill` is one of FILLS."""
    if fill not in FILLS:
        raise ValueError(f"there is no fill {fill!r}; valid are {', '.join(FILLS)}")


def blur_matrix(n_px: int, sigma_px: float) -> np.ndarray:
    """Gaussian weights float32 [n_px, n_px], rows sum to 1 (renormalised at the border); sigma 0 is none.

    Raises ValueError if sigma_px is negative.
    """
    if sigma_px < 0:
        raise ValueError(f"sigma_px is at least 0, got {sigma_px}")
    distance = np.arange(n_px)[:, None] - np.arange(n_px)[None, :]
    weights = np.exp(-0.5 * np.square(distance / sigma_px)) if sigma_px else np.eye(n_px)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def cell_order(n_cells: int, seed: int) -> np.ndarray:
    """For each cell which one comes there, int32 [n_cells]: random, and no cell stays (but a single one)."""
    around = np.random.default_rng([seed, 0x66696C6C]).permutation(n_cells)
    order = np.empty(n_cells, np.int32)
    order[around] = np.roll(around, 1)
    return order


def filled(images, fill, blur_rows, blur_columns, order, grid: tuple[int, int], stride_px: int) -> jax.Array:
    """The images [B, S, T, 3] filled everywhere; a patch is cut out of this.

    Args:
      images: normalised.
      fill: int scalar, the position in FILLS; may be traced: one program serves them all.
      blur_rows, blur_columns: [S, S] and [T, T] from `blur_matrix`.
      order: [H * W] from `cell_order`; pixels beyond the grid stay.
      grid, stride_px: H, W and pixels a cell; static.
    """

    def blur(images):
        return jnp.einsum("sp,tq,bpqc->bstc", blur_rows, blur_columns, images, precision="float32")

    def mean(images):
        return jnp.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)

    def shuffle(images):
        (height, width), px, b = grid, stride_px, len(images)
        tiles = images[:, : height * px, : width * px].reshape(b, height, px, width, px, 3)
        tiles = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(b, height * width, px, px, 3)[:, order]
        tiles = tiles.reshape(b, height, width, px, px, 3).transpose(0, 1, 3, 2, 4, 5)
        return images.at[:, : height * px, : width * px].set(tiles.reshape(b, height * px, width * px, 3))

    return jax.lax.switch(fill, (blur, mean, shuffle), images)  # in the order of FILLS
