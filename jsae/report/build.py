"""Writes the report's files from `Results`, one page at a time.

    index.html  features.html + features.js  features/feature-N.html  images.html, images-2.html, ...
    images/I.jpg (each test image once, used by all pages)  style.css  report.js
    tables/NAME.csv  tables/columns.csv (what each column means)  figures/NAME.svg

The folder is self-contained: every link is relative, so it opens from disk and can be mailed as a zip.
Numbers in a CSV file are written in full, as they are in Parquet; lists by class are in Parquet only.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv

from jsae.report import pictures
from jsae.report.figures.axes import standalone
from jsae.report.pages.feature import feature_data
from jsae.report.pages.features import data_script, features_data
from jsae.report.pages.images import PER_PAGE, image_order, images_data, page_names
from jsae.report.pages.index import index_data
from jsae.report.pages.render import STATIC, render, template_text
from jsae.report.results import Results
from jsae.runtime.context import RunContext
from jsae.tables import documentation

_MAX_CELLS = 250_000  # about 4 MB; what is larger stays in the Parquet file


def build(
    results: Results,
    write: Callable[[str, bytes], None],
    *,
    images: np.ndarray | Sequence[np.ndarray] | None = None,
    image_ids: Sequence[str] | None = None,
    augmented: bytes | None = None,
    context: RunContext | None = None,
) -> int:
    """Write all files of the report and return the number of feature pages.

    Args:
      results: of the study.
      write: (path relative to the report folder, bytes) -> None.
      images: uint8 [N, S, S, 3], indexed one by one, or None: no pictures are shown, and no pages of images.
      image_ids: id of each image, or None.
      augmented: a picture of the classifier's augmented training images, or None.
      context: of the run.
    """
    context = context or RunContext()
    order = image_order(results) if images is not None else []
    image_pages = page_names(len(order))
    page_of = {image: image_pages[i // PER_PAGE] for i, image in enumerate(order)}
    shared = {
        "facts": results.facts,
        "has_pictures": images is not None,
        "has_images": bool(order),
        "has_features": bool(results.features),
        "has_augmented": augmented is not None,
        "root": "",
    }

    def page(path: str, template: str, data: dict) -> None:
        context.check_here()  # only one process is here
        write(path, render(template, shared | {"here": template.removesuffix(".html")} | data))

    for name in STATIC:
        write(name, template_text(name).encode())
    if augmented is not None:
        write("figures/augmented.jpg", pictures.recoded(augmented))
    pictured = set(order)
    with context.progress(len(results.chosen), label="report", unit="page") as progress:
        for feature in results.chosen:
            data = feature_data(results, feature, page_of)
            pictured |= {patch["image"] for patch in data["patches"]}
            page(f"features/feature-{feature}.html", "feature.html", data | {"root": "../"})
            progress.update()
    for number, path in enumerate(image_pages, 1):
        page(path, "images.html", images_data(results, order, number, image_ids))
    if images is not None:
        for image in sorted(pictured):
            context.check_here()
            write(f"images/{image}.jpg", pictures.jpeg(images[image]))
    if results.features:
        data = features_data(results)
        write("features.js", data_script(data, results.facts["grid"]))
        page("features.html", "features.html", data)
    tables = csv_tables(results)
    for name, table in tables.items():
        buffer = io.BytesIO()
        pyarrow.csv.write_csv(table, buffer)  # unknown numbers are empty fields
        write(f"tables/{name}.csv", buffer.getvalue())
    data = index_data(results)
    for name, figure in data["figures"].items():
        write(f"figures/{name}.svg", standalone(figure))
    page("index.html", "index.html", data | {"tables": list(tables)})
    return len(results.chosen)


def csv_tables(results: Results) -> dict[str, pa.Table]:
    """File name without its ending -> the table written under it; "columns" says what each column means."""
    tables = dict(results.tables)
    for stage, rows in results.curves.items():
        if rows:
            names = dict.fromkeys(name for row in rows for name in row)
            names = [name for name in names if not name.endswith("_s")]  # times differ from run to run
            tables[f"{stage}_curve"] = pa.table({name: [row.get(name) for row in rows] for name in names})
    found, meanings = {}, []
    for name, table in sorted(tables.items()):
        flat = [f.name for f in table.schema if not pa.types.is_list(f.type)]
        if len(flat) * len(table) <= _MAX_CELLS:
            found[name] = table.select(flat)
        docs = documentation(table)
        meanings += [
            {"table": name, "column": column, "meaning": docs[column]} for column in docs if docs[column]
        ]
    return found | ({"columns": pa.Table.from_pylist(meanings)} if meanings else {})
