"""The embedded data set: drawn aircraft whose variants are made of named parts, with masks of the parts.

Nothing is downloaded, and the truth is known: which parts make a variant, and which pixels each part covers.
That lets a study check what a feature sees against masks instead of opinions.

    variants.py    the parts and the variants made of them
    appearance.py  everything that varies without telling the variant: pose, shape, livery, light, sky, noise
    shapes.py      an aircraft as 3-D polygons, back to front
    sky.py         the background
    drawing.py     polygons and sky to an image with its masks: draw(seed, split, index)
    builder.py     the TFDS builder (imports tensorflow_datasets; the other files need numpy and OpenCV only)
"""
