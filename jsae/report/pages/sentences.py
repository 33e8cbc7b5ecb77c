"""What the report says in words: headline sentences, the main effect of a feature, and what to doubt.

A sentence states a difference to a control, its interval, and whether the interval excludes zero; it never
says more than the table beside it.
"""

from jsae import metrics
from jsae.analysis.features import MIN_ACTIVE_IMAGES
from jsae.report.formatting import SMALLEST_P, is_known, number, percent
from jsae.report.results import Results

_SPACES = (
    (
        "feature_space",
        "Removing features",
        "a class-selective feature is removed",
        "a direction of equal norm, drawn from the activations' covariance, is removed instead",
    ),
    (
        "input_space",
        "Blurring patches",
        "the patch on which a class-selective feature peaks is blurred",
        "a patch of the same image with matched blur energy is blurred instead",
    ),
)
_MIXED = 0.5  # share of the top patches from which a feature is called polysemantic by class
_WEAK_ACCURACY = 0.5  # test accuracy below which the classifier is called weak


def why_unknown(n_active: int | None) -> str:
    """Why an effect of a feature that fires on `n_active` test images may be unknown."""
    if is_known(n_active) and n_active < MIN_ACTIVE_IMAGES:
        return (
            f"stated for features that fire on at least {MIN_ACTIVE_IMAGES} test images; this one fires on "
            f"{n_active}"
        )
    return "not defined here: one class only, or too few images have a matching control"


def headlines(summary: dict, n_selective: int | None = None) -> list[dict]:
    """One plain sentence for each headline number: label, value, ci95, sentence.

    `n_selective` is how many class-selective features were ablated, None if that is not known.
    """
    over = ""
    if n_selective is not None:
        over = f"Mean over {number(n_selective)} such feature{'' if n_selective == 1 else 's'}. "
    found = []
    for space, label, what, control in _SPACES:
        effects = summary["ablation"][space]
        value, pair = (effects["mean_effect_minus_control_margin" + end] for end in ("", "_ci95"))
        if is_known(value):
            side = f"{number(abs(value))} {'lower' if value < 0 else 'higher'}"
            sentence = (
                f"When {what}, the margin of its class ends up {side} on average than when {control}. "
                + over
                + _verdict(pair)
            )
        else:
            sentence = (
                f"{label}: not known: no ablation has run, or no class-selective feature was among the "
                "ablated."
            )
        label = f"{label}, effect − control"
        found.append({"label": label, "value": value, "ci95": pair, "sentence": sentence})
    return found


def _verdict(pair: list | None) -> str:
    if not pair:
        return "No interval is known, so read this as an anecdote."
    if pair[0] <= 0 <= pair[1]:
        return "The interval includes zero, so the data do not settle its sign."
    return "The interval excludes zero."


def in_words(results: Results, row: dict) -> str:
    """The main effect of the feature as two plain sentences; says why if there is none."""
    effect = results.main_effect(row["feature"], scope="map")
    if effect is None:
        return "This feature was not among the ablated ones, so what it does to the prediction is not known."
    n = effect["n_active"]
    if not is_known(effect["mean_delta"]):
        return (
            f"It fires on {number(n)} test images, fewer than the {MIN_ACTIVE_IMAGES} that an effect is "
            "stated for."
            if n < MIN_ACTIVE_IMAGES
            else "The margin is not defined here, so no main effect is stated."
        )
    text = (
        f"On the {number(n)} test images where it fires ({percent(effect['share_active'])} of all), removing "
        f"it changes the margin of its top class, {row['top_class_name']}, by "
        f"{_estimate(effect, 'mean_delta')}."
    )
    control = effect["control_direction_mean_delta"]
    if is_known(control) and is_known(effect["effect_minus_direction"]):
        text += (
            f" A direction of equal norm changes it by {number(control)}; the difference is "
            f"{_estimate(effect, 'effect_minus_direction')}"
        )
        p = effect["p_direction"]
        if is_known(p):
            text += f", p {SMALLEST_P}" if p == 0 else f", p = {number(p)}"
        text += "."
    return text


def _estimate(row: dict, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = f" (95% interval {number(low)} to {number(high)})" if is_known(low) and is_known(high) else ""
    return number(row[name]) + ends


def doubts(results: Results) -> list[str]:
    """What a careful reader should hold against these numbers."""
    facts = results.facts
    found = []
    if facts["data_kind"] == "synthetic_aircraft":
        found.append(
            "These pictures are drawn by a program, not photographed. The study shows that the method works "
            "end to end; it says nothing about photographs of aircraft."
        )
    stride = ""
    if facts["grid"] and facts["image_px"]:
        stride = f" Here it is {number(facts['image_px'] / facts['grid'][1])} pixels wide."
    found += [
        "An outlined cell is one stride of the grid, not a receptive field: the network has used much "
        "more of the image, often all of it." + stride,
        f"The top {metrics.N_PURITY} images are the tail of a feature. Many also fire, more weakly, on other "
        "things; check density and class bars before naming one.",
        "The plain selectivity index is near 1 by chance for a feature that fires in few images; read "
        f"its excess over shuffled labels, and purity{metrics.N_PURITY}.",
        "Removing a feature leaves the rest of the activation in place, but may still push it to where the "
        "network was never trained. That is why every effect stands beside a control of equal size.",
        "Blur also disturbs: an edge that a blur leaves can move a prediction by itself. "
        "The matched patch shares it.",
        "Intervals are over test images. They do not cover another seed of the SAE or of the classifier.",
    ]
    if facts["n_skipped"]:
        found.append(
            f"{number(facts['n_skipped'])} damaged images were skipped; the data manifest lists them "
            "with reasons."
        )
    found += _measured_doubts(results)
    accuracy = results.summary["classifier"]["test_accuracy"]
    if is_known(accuracy) and accuracy < _WEAK_ACCURACY:
        found.append(
            f"The classifier is right in only {percent(accuracy)} of the test images; effects on a weak "
            "classifier may not carry over."
        )
    return found


def _measured_doubts(results: Results) -> list[str]:
    """Doubts with a number of this study in them."""
    found = []
    columns = {
        name: [value for value in results.features.get(name, []) if is_known(value)]
        for name in ("erf_share", "uniform_share", "polysemanticity")
    }
    shares, even, mixed = columns.values()
    if shares:
        found.append(
            f"On average over {number(len(shares))} features only {percent(sum(shares) / len(shares))} of "
            "the gradient of an activation falls inside the cell's own stride (erf share"
            + (f"; {percent(even[0])} if it were spread evenly over the image" if even else "")
            + "): the rest of what the feature reads lies outside the outline."
        )
    if mixed:
        n = sum(value >= _MIXED for value in mixed)
        found.append(
            f"{number(n)} of {number(len(mixed))} features that fire are polysemantic by class: half of "
            "their top patches or more are of other classes than the commonest. Many parts are shared by "
            "classes, so this alone does not make a feature meaningless."
        )
    return found
