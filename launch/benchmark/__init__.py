"""How fast the hot paths are, beside other people's code; one file per subject."""
