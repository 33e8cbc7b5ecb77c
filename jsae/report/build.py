"""Writes the report's files from a `Study`, one page at a time.

    index.html  features.html + features.js  features/feature-N.html  images.html, images-2.html, ...
    images/I.jpg (each test image once, used by all pages)  style.css  report.js
    tables/NAME.csv  figures/NAME.svg

The folder is self-contained: every link is relative, so it opens from disk and can be mailed as a zip.
"""

from collections.abc import Callable

from jsae.report import downloads, pages, pictures
from jsae.report.feature_page import feature_data
from jsae.report.features_page import data_script, features_data
from jsae.report.images_page import image_order, image_pages, images_data
from jsae.report.index_page import index_data
from jsae.report.reading import Study
from jsae.runtime import logs, preemption


def build(
    study: Study,
    write: Callable[[str, bytes], None],
    *,
    images=None,
    image_ids=None,
    augmented: bytes | None = None,
) -> int:
    """Write all files of the report and return the number of feature pages.

    Args:
      study: the tables.
      write: (path relative to the report folder, bytes) -> None.
      images: uint8 [N, S, S, 3], indexed one by one, or None: no pictures are shown, and no pages of images.
      image_ids: id of each image, or None.
      augmented: a picture of the classifier's augmented training images, or None.
    """
    order = image_order(study) if images is not None else []
    page_of = image_pages(order)
    shared = {
        "has_pictures": images is not None,
        "has_images": bool(order),
        "has_features": bool(study.features),
        "has_augmented": augmented is not None,
    }
    for name in pages.STATIC:
        write(name, pages.template_text(name).encode())
    if augmented is not None:
        write("figures/augmented.jpg", pictures.recoded(augmented))
    shown = set(order)
    with logs.progress(len(study.chosen), label="report", unit="page") as progress:
        for feature in study.chosen:
            preemption.check_here()  # only one process is here
            page = feature_data(study, feature, page_of)
            shown |= {patch["image"] for patch in page["patches"]}
            page |= shared | {"root": "../", "here": "feature"}
            write(f"features/feature-{feature}.html", pages.render("feature.html", page))
            progress.update()
    for number in range(1, len(set(page_of.values())) + 1):
        preemption.check_here()
        page = images_data(study, order, number, image_ids) | shared | {"root": "", "here": "images"}
        write(page["pages"][number - 1], pages.render("images.html", page))
    if images is not None:
        for image in sorted(shown):
            preemption.check_here()
            write(f"images/{image}.jpg", pictures.jpeg(images[image]))
    if study.features:
        table = features_data(study)
        write("features.js", data_script(study, table))
        page = table | shared | {"facts": study.facts, "root": "", "here": "features"}
        write("features.html", pages.render("features.html", page))
    for name, found in downloads.csv_tables(study).items():
        write(f"tables/{name}.csv", downloads.csv_bytes(found))
    index = index_data(study)
    for name, figure in index["figures"].items():
        write(f"figures/{name}.svg", downloads.svg_bytes(figure))
    write("index.html", pages.render("index.html", index | shared | {"root": "", "here": "index"}))
    return len(study.chosen)
