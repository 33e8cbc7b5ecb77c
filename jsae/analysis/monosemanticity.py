"""monosemanticity.parquet: how alike the images are on which a feature fires (arXiv 2504.02821).

The images' embeddings come from another classifier (config.analysis.embedding_workdir, a study of another
seed): this one's own would be circular. Without it the table does not exist.
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
            "feature's means "
            "over their grids; null if it fires in fewer than two",
        ),
        Column(
            "monosemanticity_random", pa.float64(), "the same for a feature that fires in all images alike"
        ),
    ),
)


def table(pooled: np.ndarray, embeddings: np.ndarray) -> pa.Table:
    """monosemanticity.parquet of pooled features [n, F] and embeddings [n, D] of the same images."""
    values, random = metrics.monosemanticity(pooled, embeddings)
    return TABLE.make(
        {
            "feature": np.arange(len(values)),
            "monosemanticity": values,
            "monosemanticity_random": np.full(len(values), random),
        }
    )
