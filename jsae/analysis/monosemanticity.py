"""monosemanticity.parquet: how alike the images are on which a feature fires (arXiv 2504.02821).

The images' embeddings come from another classifier (config.analysis.embedding_workdir, a study of another
seed): this one's own would be circular. Without it the table does not exist. Beside each value stands its
null, the feature's activations shuffled over the images: its mean is that of all pairs of images, its spread
the feature's own, so a sparse feature needs a larger excess than a dense one for the same z.
"""

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.tables import Column, Table

TABLE = Table(
    "monosemanticity",
    (
        Column("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
        Column(
            "monosemanticity",
            pa.float64(),
            "mean cosine of the embeddings of two test images, weighted by the product of the "
            "feature's means over their grids; null if it fires in fewer than two",
        ),
        Column(
            "monosemanticity_null",
            pa.float64(),
            "mean of the same over permutations of the feature's activations among the images",
        ),
        Column(
            "monosemanticity_z",
            pa.float64(),
            "(monosemanticity - monosemanticity_null) / standard deviation of the null; null if that is 0",
        ),
    ),
)


def table(pooled: np.ndarray, embeddings: np.ndarray, n_permutations: int, seed: int) -> pa.Table:
    """monosemanticity.parquet of pooled features [n, F] and embeddings [n, D] of the same images."""
    values = metrics.monosemanticity(pooled, embeddings)
    null, spread = metrics.monosemanticity_null(pooled, embeddings, n_permutations, seed)
    return TABLE.make(
        {
            "feature": np.arange(len(values)),
            "monosemanticity": values,
            "monosemanticity_null": null,
            "monosemanticity_z": (values - null) / np.where(spread > 0, spread, np.nan),
        }
    )
