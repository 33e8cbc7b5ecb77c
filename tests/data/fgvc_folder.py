"""A small generated data set in FGVC-Aircraft layout."""

import io
import pathlib

import numpy as np
from PIL import Image

CLASSES = ("707-320", "F-16A/B", "Flügel <b>&amp;")
FAMILIES = {"707-320": "Boeing 707", "F-16A/B": "F-16", "Flügel <b>&amp;": "F-16"}


def jpeg(seed: int, width: int = 30, height: int = 40) -> bytes:
    """A noisy photo with a white banner in its last 4 rows."""
    image = np.random.default_rng(seed).integers(0, 200, (height, width, 3), np.uint8)
    image[-4:] = 255
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_folder(root: pathlib.Path, per_class: int = 2, boxes: bool = False) -> pathlib.Path:
    """Write root/data with `per_class` photos a class and split, lists sorted by class; returns root."""
    data = root / "data"
    (data / "images").mkdir(parents=True)

    def write(file, lines):
        (data / file).write_text("".join(f"{line}\n" for line in lines), "utf-8")

    write("variants.txt", CLASSES)
    write("families.txt", dict.fromkeys(FAMILIES.values()))
    write("manufacturers.txt", ["Boeing", "Any"])
    ids = []
    for offset, split in enumerate(("train", "val", "test")):
        # ids fall while classes rise, so that sorting by id undoes the sorting by class
        rows = [
            (f"{9000 - 10 * (label * per_class + i) + offset:07d}", c)
            for label, c in enumerate(CLASSES)
            for i in range(per_class)
        ]
        write(f"images_variant_{split}.txt", [f"{id_} {c}" for id_, c in rows])
        write(f"images_family_{split}.txt", [f"{id_} {FAMILIES[c]}" for id_, c in rows])
        write(
            f"images_manufacturer_{split}.txt",
            [f"{id_} {'Boeing' if c[0] == '7' else 'Any'}" for id_, c in rows],
        )
        write(f"images_{split}.txt", [id_ for id_, _ in rows])
        ids += [id_ for id_, _ in rows]
    for id_ in ids:
        (data / "images" / f"{id_}.jpg").write_bytes(jpeg(int(id_)))
    if boxes:
        write("images_box.txt", [f"{id_} 0 1 15 40" for id_ in ids])
    return root
