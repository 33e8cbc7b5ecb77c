"""counterfactual.parquet: what sets of features carry of a part, one row per dictionary, pair and size.

Features are chosen on train drawings and scored on test drawings (`jsae.metrics.counterfactual` has the
formulas). Numbers of a pair whose twins the network does not tell apart are null.
"""

import pyarrow as pa

from jsae.tables import Column, Table

PAIR = (
    Column(
        "dictionary",
        pa.string(),
        "whose features: sae; frozen_decoder, an SAE with a random decoder; rotation, channels, pca, signed "
        "bases; random_matched, random features of the SAE that change as much; supervised, the mean change",
    ),
    Column("part", pa.string(), "the part that the two classes of a pair differ in"),
    Column("without", pa.string(), "class without it"),
    Column("with_part", pa.string(), "class with it"),
)
TABLE = Table(
    "counterfactual",
    (
        *PAIR,
        Column("gate", pa.bool_(), "whether the network tells the twins apart; if not, scores are null"),
        Column("twin_accuracy", pa.float64(), "mean of the shares of twins on the right side of c . l = 0"),
        Column("total", pa.float64(), "mean over test drawings of D = c . (l(A1) - l(A0)), logits"),
        Column("m", pa.int32(), "features moved together"),
        Column(
            "features", pa.list_(pa.int32()), "which, best single share on train first; fewer than m: all"
        ),
        Column("size", pa.float64(), "sum over them of mean |f1 - f0| * ||w|| over train drawings and cells"),
        Column(
            "share",
            pa.float64(),
            "sum over test drawings of what moving the features adds to c . l(A0), over that of D",
            interval="95% bootstrap interval over drawings, of this network only,",
        ),
        Column("necessity", pa.float64(), "the same for moving them back from A1"),
        Column(
            "tracking", pa.float64(), "1 - Var(D - s) / Var(D) over test drawings, s what the features add"
        ),
        Column("leak", pa.float64(), "mean over pairs of other parts of |share| of the same features there"),
        Column("isolated", pa.float64(), "1 - |1 - share| - leak"),
        Column("transfer", pa.float64(), "mean share in the part's other pairs; null where it has none"),
        Column(
            "faithfulness_zero",
            pa.float64(),
            "mean over test drawings of the cosine of class-centred changes of the logits: features put to 0 "
            "in A1 against the part not drawn; m = 16 (1 for supervised) only, null for signed features",
        ),
        Column("faithfulness_mean", pa.float64(), "the same, put to their train mean without the part"),
        Column(
            "faithfulness_set_to", pa.float64(), "the same, put to their values in the twin without the part"
        ),
    ),
)
