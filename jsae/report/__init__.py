"""The report: summary.json and a folder of HTML pages that explains a study and opens from disk.

    stages' results --summary.py--> summary.json
    tables, curves --reading.py--> Study      activations, SAE --survey.py--> maps, histograms, removals
    Study --index_page.py, features_page.py, feature_page.py, images_page.py--> page data
    page data --pages.py, templates/--> HTML      Study --downloads.py--> CSV, SVG

`run.run(config, workdir)` is the stage, `build.build` the folder. Everything between `Study` and HTML is
pure: the same study gives the same bytes. `card.make_card` is the card that `Study.show` displays.
"""

from jsae import lazy_modules
from jsae.report.summary import summarise, write_summary

__all__ = ["summarise", "write_summary"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
