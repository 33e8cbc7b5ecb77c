"""Page data of the pages of images: each with its strongest features and what their removal does.

Images whose prediction changes when one of the features shown is removed come first, then those that lose
most confidence in it.
"""

from jsae.report import pictures
from jsae.report.reading import Study

PER_PAGE = 48


def page_name(number: int) -> str:
    """File name of page 1, 2, ..."""
    return "images.html" if number == 1 else f"images-{number}.html"


def image_order(study: Study) -> list[int]:
    """The images of the survey in the order of the pages."""

    def rank(image: int) -> tuple:
        entry = study.survey.images[image]
        deltas = [row.get("delta_confidence") for row in entry["features"]]
        return (not n_flips(entry), min([d for d in deltas if d is not None], default=0.0), image)

    return sorted(study.survey.images, key=rank)


def n_flips(entry: dict) -> int:
    """How many of the image's features change its prediction when removed."""
    if entry["prediction"] is None:
        return 0
    return sum(row.get("prediction") != entry["prediction"] for row in entry["features"])


def image_pages(order: list[int]) -> dict[int, str]:
    """image -> the name of its page."""
    return {image: page_name(i // PER_PAGE + 1) for i, image in enumerate(order)}


def images_data(study: Study, order: list[int], number: int, image_ids) -> dict:
    """What page `number` (from 1) shows.

    Args:
      study: the tables.
      order: from `image_order`.
      number: of the page.
      image_ids: id of each test image, or None.
    """
    names = study.facts["class_names"]
    n_pages = -(-len(order) // PER_PAGE)
    pages = set(study.chosen)

    def name(index):
        return names[index] if index is not None and index < len(names) else None

    images = []
    for image in order[(number - 1) * PER_PAGE : number * PER_PAGE]:
        entry = study.survey.images[image]
        rows = []
        for row in entry["features"]:
            top = study.feature(row["feature"])["top_class_name"] if study.features else None
            flips = row.get("prediction") is not None and row["prediction"] != entry["prediction"]
            rows.append(
                row
                | {"page": row["feature"] in pages, "top_class_name": top, "flips": flips}
                | {"map": pictures.map_text(row["map"]), "prediction_name": name(row.get("prediction"))}
            )
        images.append(
            {
                "image": image,
                "id": None if image_ids is None else image_ids[image],
                "label_name": name(entry["label"]),
                "prediction_name": name(entry["prediction"]),
                "right": entry["label"] == entry["prediction"],
                "confidence": entry["confidence"],
                "n_flips": n_flips(entry),
                "rows": rows,
            }
        )
    return {
        "facts": study.facts,
        "images": images,
        "number": number,
        "pages": [page_name(n) for n in range(1, n_pages + 1)],
        "n_images": len(order),
        "n_flipped": sum(n_flips(study.survey.images[i]) > 0 for i in order),
        "has_effects": any(study.survey.images[i]["prediction"] is not None for i in order),
    }
