"""FGVC-Aircraft 2013b (Maji et al., arXiv 1306.5151): its lists, its archive and its TFDS builder.

10,000 photos of aircraft in 100 variants, 70 families and 30 manufacturers, with official splits. The
images may be used for non-commercial research only and are never part of this repository.
"""

from jsae.data.fgvc_aircraft.builder import FgvcAircraft, FgvcAircraftConfig

__all__ = ["FgvcAircraft", "FgvcAircraftConfig"]
