"""counterfactual_response.parquet: whether single features answer to a part and to no other.

One row per dictionary, pair and rank of the features of the largest single-feature share on train. Values are
means over cells; numbers of a pair whose twins the network does not tell apart are null.
"""

import pyarrow as pa

from jsae.ablation.counterfactual.table import PAIR
from jsae.tables import Column, Table

N_RANKS = 4
TABLE = Table(
    "counterfactual_response",
    (
        *PAIR,
        Column("rank", pa.int32(), "of the feature's single share on train, from 1"),
        Column("feature", pa.int32(), "its number"),
        Column("train_share", pa.float64(), "that share"),
        Column("z", pa.float64(), "mean change over test drawings, over the SD without the part"),
        Column(
            "sensitivity",
            pa.float64(),
            "share of test drawings that change it, with the sign of train, by more than the 95th percentile "
            "of differences between two drawings without the part",
        ),
        Column("specificity", pa.float64(), "share of other parts' test drawings that do not"),
        Column("balanced_accuracy", pa.float64(), "mean of the two"),
    ),
)
