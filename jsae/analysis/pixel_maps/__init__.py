"""Which pixels a feature's peak depends on, and whether that is so.

`attribution` makes the maps, `curves` holds them and their rivals against the feature itself, `table` does
both for the top patches of chosen features. `Study.pixel_map` is the first of these for any images.
"""
