"""The paper's setting (arXiv 2606.15468): ConvNeXt-Tiny on FGVC-Aircraft, 224 px, 100 variants, ReLU-L1 SAE.

    python -m launch.pipeline --config=configs/fgvc_convnext_tiny.py --config.data.dir=DIR --workdir=runs/fgvc
    python -m launch.pipeline --config=configs/fgvc_convnext_tiny.py:WEIGHTS --config.data.dir=DIR --workdir=W

DIR is the unpacked fgvc-aircraft-2013b folder, its archive, or "download". The second form fine-tunes from
WEIGHTS, a .safetensors file of a ConvNeXt-Tiny of timm, torchvision, facebook or Hugging Face. For a GPU or
TPU box.
Expected result: none measured yet; this has never run on the real photos.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(pretrained: str = "") -> ConfigDict:
    """Official splits with train and val joined for training, the 20-pixel banner cut off."""
    config = demo.get_config()
    config.data.update(
        kind="fgvc_aircraft",
        image_size=224,
        banner_px=20,
        train_split="trainval",
        n_train=0,
        n_val=0,
        n_test=0,
    )
    config.classifier.update(
        arch="tiny",
        depths=(),  # those of the size named by arch
        dims=(),
        stem_stride=4,  # a cell of stage 4 is 32 px, the grid 7x7
        init="normal",
        calibrate_norms=False,
        layer_scale=1e-6,
        n_epochs=300.0,
        warmup_epochs=20.0,
        batch_size=128,
        learning_rate=1e-3,
        drop_path=0.2,
        ema_decay=0.999,
        augmentation=dict(crop="resized", min_scale=0.25, trivial=0.5, erase=0.25, mix="cutmix"),
        dtype="bfloat16",
        log_every_steps=50,
        eval_every_steps=1040,
        save_every_steps=520,
    )
    if pretrained:
        config.classifier.update(
            pretrained=pretrained,
            n_epochs=60.0,
            warmup_epochs=5.0,
            learning_rate=5e-4,
            layer_decay=0.8,
            augmentation=dict(min_scale=0.35, erase=0.0, mix="mixup", mix_alpha=0.2),
        )
    config.activations.update(dtype="bfloat16")
    config.sae.update(variant="relu_l1", n_features=6144, n_epochs=100.0)
    config.sae.relu_l1.update(l1=5e-3, l1_warmup_steps=1000)
    config.ablation.update(n_features=128, n_blurred_features=64, max_images=128, sigma_px=12.0)
    config.report.update(n_features=1000)
    return config
