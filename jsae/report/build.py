"""Writes the report's files from a `Study`: pages, thumbnails, style sheet and the one small script.

The folder is self-contained: every link is relative, so it opens from disk and can be mailed as a zip.
"""

from collections.abc import Callable

from jsae.report import pages, pictures
from jsae.report.feature_page import feature_data
from jsae.report.index_page import index_data
from jsae.report.reading import Study
from jsae.runtime import logs, preemption


def build(study: Study, write: Callable[[str, bytes], None], *, images=None, heat: dict | None = None) -> int:
    """Write all files of the report and return the number of feature pages.

    Args:
      study: the tables.
      write: (path relative to the report folder, bytes) -> None.
      images: uint8 [N, S, S, 3], indexed one by one, or None: no pictures are shown.
      heat: (image, feature) -> map [H, W], or None: only the peak's cell is outlined.
    """
    for name in pages.STATIC:
        write(name, pages.template_text(name).encode())
    shared = {"has_pictures": images is not None}
    with logs.progress(len(study.chosen), label="report", unit="page") as progress:
        for feature in study.chosen:
            preemption.check_if_alone()  # only one process is here
            page = feature_data(study, feature, heat) | shared | {"root": "../"}
            write(f"features/feature-{feature}.html", pages.render("feature.html", page))
            progress.update()
    if images is not None:
        for image in pictures.wanted_maps(study.patches):
            preemption.check_if_alone()  # only one process is here
            write(f"images/{image}.jpg", pictures.jpeg(images[image]))
    write("index.html", pages.render("index.html", index_data(study) | shared | {"root": ""}))
    return len(study.chosen)
