"""Page data of the pages of images: each with its strongest features and what their removal does.

Images whose prediction changes when one of the features shown is removed come first, then those that lose
most confidence in it.
"""

from collections.abc import Sequence

from jsae.report import pictures
from jsae.report.results import Results

PER_PAGE = 48


def image_order(results: Results) -> list[int]:
    """The images of the survey in the order of the pages."""

    def rank(image: int) -> tuple:
        entry = results.survey.images[image]
        deltas = [row.get("delta_confidence") for row in entry["features"]]
        return (not n_flips(entry), min([d for d in deltas if d is not None], default=0.0), image)

    return sorted(results.survey.images, key=rank)


def n_flips(entry: dict) -> int:
    """How many of the image's features change its prediction when removed."""
    if entry["prediction"] is None:
        return 0
    return sum(row["prediction"] != entry["prediction"] for row in entry["features"])


def page_names(n_images: int) -> list[str]:
    """File names of the pages."""
    n_pages = -(-n_images // PER_PAGE)
    return ["images.html", *(f"images-{number}.html" for number in range(2, n_pages + 1))][:n_pages]


def images_data(results: Results, order: list[int], number: int, image_ids: Sequence[str] | None) -> dict:
    """What a page shows.

    Args:
      results: of the study.
      order: from `image_order`.
      number: of the page, from 1.
      image_ids: id of each test image, or None.
    """
    entries = results.survey.images
    listed = order[(number - 1) * PER_PAGE : number * PER_PAGE]
    features = {row["feature"] for image in listed for row in entries[image]["features"]}
    return {
        "images": [(i, i if image_ids is None else image_ids[i], entries[i]) for i in listed],
        "number": number,
        "pages": page_names(len(order)),
        "n_images": len(order),
        "n_flipped": sum(n_flips(entries[image]) > 0 for image in order),
        "n_flips": n_flips,
        "map_text": pictures.map_text,
        "has_effects": any(entries[image]["prediction"] is not None for image in order),
        "feature_pages": features.intersection(results.chosen),
        "top_classes": {feature: results.feature(feature)["top_class_name"] for feature in features},
    }
