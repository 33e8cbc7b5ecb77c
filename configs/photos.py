"""A study on real photos in FGVC layout that fits two CPU cores.

    python -m launch.pipeline --config=configs/photos.py --config.data.dir=PHOTOS --workdir=W
    python -m launch.pipeline --config=configs/photos.py:WEIGHTS --config.data.dir=PHOTOS --workdir=W

PHOTOS holds data/images_variant_train.txt and its neighbours, and data/images/<id>.jpg. The first form trains
a small ConvNeXt from scratch; the second fine-tunes from WEIGHTS, a .safetensors file of a published ConvNeXt
(timm, torchvision, facebook or Hugging Face names). Both see 96 px. Made for a set of 30 types and 2,100
training photos without banner; for FGVC-Aircraft add --config.data.banner_px=20.
Expected there: test accuracy several times chance (1/30) from scratch; above 0.2 after five minutes when
fine-tuned from a ConvNeXt-atto that knows 64-pixel photographs.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(pretrained: str = "") -> ConfigDict:
    """The demo's study with photos for data, another network, stronger augmentation and longer training."""
    config = demo.get_config()
    config.data.update(kind="fgvc_aircraft", n_train=0, n_val=0, n_test=0)
    config.sae.update(n_features=1536, n_epochs=40.0, batch_size=1024, learning_rate=2e-3)
    demo.set_k(config, 24)
    config.ablation.update(n_features=32, max_images=48)
    if pretrained:
        config.sae.n_features = 2560  # 8 times atto's 320 channels
        demo.set_k(config, 32)  # a tenth of them
        config.classifier.update(
            pretrained=pretrained,
            arch="",
            depths=(),
            dims=(),
            n_epochs=12.0,
            warmup_epochs=1.0,
            learning_rate=1e-3,
            layer_decay=0.98,
            drop_path=0.0,
            ema_decay=0.995,
            augmentation=dict(crop="resized", min_scale=0.5),  # more of it needs more epochs
            eval_every_steps=264,
            save_every_steps=132,
        )
    else:
        config.classifier.update(
            arch="small96",
            depths=(0, 1, 2, 3),
            dims=(32, 32, 64, 192),
            n_epochs=20.0,
            warmup_epochs=2.0,
            learning_rate=2e-3,
            drop_path=0.1,
            augmentation=dict(crop="resized", min_scale=0.35),
            eval_every_steps=660,
            save_every_steps=330,
        )
    return config
