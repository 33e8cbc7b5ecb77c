"""What the report says in words: headline sentences, the main effect of a feature, and what to doubt.

A sentence states a difference to a control, its interval, and whether the interval excludes zero; it never
says more than the table beside it.
"""

from jsae.report.formatting import NOT_RUN, SMALLEST_P, is_known, number, percent
from jsae.report.reading import Study

_NO_SELECTIVE = "not known: no ablation has run, or no class-selective feature was among the ablated"


def _compare(value: float) -> str:
    side = "lower" if value < 0 else "higher"
    return f"{number(abs(value))} {side}"


def _over(n_selective: int | None) -> str:
    if n_selective is None:
        return ""
    return f"Mean over {number(n_selective)} such feature{'' if n_selective == 1 else 's'}. "


def _verdict(pair) -> str:
    if not pair:
        return "No interval is known, so read this as an anecdote."
    if pair[0] <= 0 <= pair[1]:
        return "The interval includes zero, so the data do not settle its sign."
    return "The interval excludes zero."


def headlines(summary: dict, n_selective: int | None = None) -> list[dict]:
    """One plain sentence for each headline number: label, value, ci95, sentence.

    `n_selective` is how many class-selective features were ablated, None if that is not known.
    """
    spaces = (
        (
            "feature_space",
            "Removing features",
            "a class-selective feature is removed",
            "a direction of equal norm, drawn from the activations' covariance, is removed instead",
        ),
        (
            "input_space",
            "Blurring patches",
            "the patch that a class-selective feature sees is blurred",
            "a patch of the same image with matched blur energy is blurred instead",
        ),
    )
    found = []
    for space, label, what, control in spaces:
        effects = summary["ablation"][space]
        value, pair = (effects["mean_effect_minus_control_margin" + end] for end in ("", "_ci95"))
        sentence = f"{label}: {_NO_SELECTIVE}."
        if is_known(value):
            sentence = (
                f"When {what}, the margin of its class ends up {_compare(value)} on average than when "
                f"{control}. " + _over(n_selective) + _verdict(pair)
            )
        found.append(
            {"label": f"{label}, effect − control", "value": value, "ci95": pair, "sentence": sentence}
        )
    agreement = summary["ablation"]["agreement"]
    value, pair = agreement["spearman"], agreement["spearman_ci95"]
    sentence = "Whether blurring a patch and removing the feature agree is not known: " + NOT_RUN + "."
    if is_known(value):
        sentence = (
            "Rank correlation across features between what blurring a feature's patch and what removing the "
            f"feature itself does to the same images: {number(value)} (1 same order, 0 unrelated, "
            "−1 opposite order). " + _verdict(pair)
        )
    found.append(
        {"label": "Agreement of the two, Spearman ρ", "value": value, "ci95": pair, "sentence": sentence}
    )
    return found


def in_words(study: Study, row: dict) -> str:
    """The main effect of the feature as two plain sentences; says why if there is none."""
    effect = study.effect(row["feature"], "map", "top_class", "margin")
    if effect is None:
        return "This feature was not among the ablated ones, so what it does to the prediction is not known."
    n = effect["n_active"]
    if not is_known(effect["mean_delta"]):
        return (
            f"It fires on {number(n)} test images, fewer than the 20 that an effect is stated for."
            if n < 20
            else "The margin is not defined here, so no main effect is stated."
        )
    text = (
        f"On the {number(n)} test images where it fires ({percent(effect['share_active'])} of all), removing "
        f"it changes the margin of its top class, {row['top_class_name']}, by {number(effect['mean_delta'])}"
        f"{_bracket(effect, 'ci95')}."
    )
    control = effect["control_direction_mean_delta"]
    if is_known(control) and is_known(effect["effect_minus_direction"]):
        text += (
            f" A direction of equal norm changes it by {number(control)}; the difference is "
            f"{number(effect['effect_minus_direction'])}{_bracket(effect, 'effect_minus_direction')}"
        )
        p = effect["p_direction"]
        if is_known(p):
            text += f", p {SMALLEST_P}" if p == 0 else f", p = {number(p)}"
        text += "."
    return text


def _bracket(row: dict, stem: str) -> str:
    low, high = row[f"{stem}_low"], row[f"{stem}_high"]
    if not (is_known(low) and is_known(high)):
        return ""
    return f" (95% interval {number(low)} to {number(high)})"


def doubts(study: Study) -> list[str]:
    """What a careful reader should hold against these numbers."""
    facts = study.facts
    stride = ""
    if facts["grid"] and facts["image_px"]:
        stride = f" Here it is {number(facts['image_px'] / facts['grid'][1])} pixels wide."
    found = [
        "An outlined cell is one stride of the grid, not a receptive field: the network has looked at much "
        "more of the image, often all of it." + stride,
        "The top 16 images are the tail of a feature. Many also fire, more weakly, on other things; "
        "look at density and class bars before naming one.",
        "The plain selectivity index is near 1 by chance for a feature that fires in few images; read "
        "its excess over shuffled labels, and purity16.",
        "Removing a feature leaves the rest of the activation in place, but may still push it to where the "
        "network was never trained. That is why every effect stands beside a control of equal size.",
        "Blur also disturbs: an edge that a blur leaves can move a prediction by itself. "
        "The matched patch shares it.",
        "Intervals are over test images. They do not cover another seed of the SAE or of the classifier.",
    ]
    if facts["data_kind"] == "synthetic_aircraft":
        found.insert(
            0,
            "These pictures are drawn by a program, not photographed. The study shows that the method works "
            "end to end; it says nothing about photographs of aircraft.",
        )
    if facts["n_skipped"]:
        found.append(
            f"{number(facts['n_skipped'])} damaged images were skipped; the data manifest lists them "
            "with reasons."
        )
    found += _measured_doubts(study)
    low = study.summary["classifier"]["test_accuracy"]
    if is_known(low) and low < 0.5:
        found.append(
            f"The classifier is right in only {percent(low)} of the test images; effects on a weak "
            "classifier may not carry over."
        )
    return found


def _measured_doubts(study: Study) -> list[str]:
    """Doubts with a number of this study in them."""
    found = []
    shares = [v for v in study.features.get("erf_share", []) if is_known(v)]
    if shares:
        even = next((v for v in study.features.get("uniform_share", []) if is_known(v)), None)
        mean = percent(sum(shares) / len(shares))
        found.append(
            f"On average over {number(len(shares))} features only {mean} of the gradient of "
            "an activation falls inside the cell's own stride (erf share"
            + (f"; {percent(even)} if it were spread evenly over the image" if even else "")
            + "): the rest of what the feature reads lies outside the outline."
        )
    mixed = [v for v in study.features.get("polysemanticity", []) if is_known(v)]
    if mixed:
        n = sum(v >= 0.5 for v in mixed)
        found.append(
            f"{number(n)} of {number(len(mixed))} features that fire are polysemantic by class: half of "
            "their top patches or more are of other classes than the commonest. Many parts are shared by "
            "classes, so this alone does not make a feature meaningless."
        )
    return found
