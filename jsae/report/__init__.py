"""The report: summary.json and a folder of HTML pages that explains a study and opens from disk.

    stages' results --summary.py--> summary.json
    tables, curves --results.py--> Results      activations, SAE --survey.py--> maps, histograms, removals
    Results --pages/, figures/--> page data and SVG --templates/--> HTML      build.py writes the files

`run.run(config, workdir)` is the stage, `build.build` the folder. Everything between `Results` and HTML is
pure: the same study gives the same bytes. `card.make_card` is the card that `Study.show` displays.
"""

from jsae import lazy_modules
from jsae.report.summary import summarise, write_summary

__all__ = ["summarise", "write_summary"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
