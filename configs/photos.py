"""A study on real photos in FGVC layout that fits two CPU cores: 96 px, a small ConvNeXt from scratch.

    python -m launch.pipeline --config=configs/photos.py --config.data.dir=PHOTOS --workdir=runs/photos

PHOTOS holds data/images_variant_train.txt and its neighbours, and data/images/<id>.jpg. Made for a set of
30 types and 2,100 training photos without banner; for FGVC-Aircraft add --config.data.banner_px=20.
Expected there, within 40 minutes: test accuracy several times chance (1/30), from scratch on so few photos.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """The demo's study with photos for data, a wider network, stronger augmentation and longer training."""
    config = demo.get_config()
    config.data.update(kind="fgvc_aircraft", n_train=0, n_val=0, n_test=0)
    config.classifier.update(
        arch="small96",
        depths=(0, 1, 2, 3),
        dims=(32, 32, 64, 192),
        n_epochs=60.0,
        warmup_epochs=2.0,
        learning_rate=2e-3,
        drop_path=0.1,
        augmentation=dict(crop="resized", min_scale=0.35),
        eval_every_steps=660,
        save_every_steps=330,
    )
    config.sae.update(n_features=1536, k=24, n_epochs=40.0)
    config.ablation.update(n_features=32, max_images=48)
    return config
