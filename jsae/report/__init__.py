"""The report: summary.json and a folder of HTML pages that explains a study and opens from disk.

    stages' results --summary.py--> summary.json
    tables, curves  --reading.py--> Study --index_page.py, feature_page.py--> page data
    page data --pages.py, templates/--> HTML     images --pictures.py--> thumbnails, heat maps

`run.run(config, workdir)` is the stage. Everything between `Study` and HTML is pure: the same study gives
the same bytes.
"""

from jsae.report.summary import summarise, write_summary

__all__ = ["summarise", "write_summary"]
