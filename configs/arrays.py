"""An SAE on activations that were extracted elsewhere, from a file: no images, no classifier.

    python -m launch.pipeline --config=configs/arrays.py --config.data.dir=FILE --workdir=runs/arrays

FILE is an .npz with activations [N,H,W,C] or [N,C] and, optionally, labels, class_names, split and ids; a
folder with activations.npy, labels.npy and so on; or one .npy with activations (jsae/data/arrays.py has the
keys). The stages classifier and ablation are skipped, and what needs logits or images is null. With the
linear head of the network they come from, --config.activations.head=HEAD.npz (jsae/classifier/head_only.py),
the ablation runs too, but for what needs images.
Expected, in minutes on two CPU cores for 100,000 vectors of 512 channels: an fvu below that of PCA with as
many components as the SAE's l0, and the report without thumbnails.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """The demo's SAE, somewhat wider, on the activations of a file."""
    config = demo.get_config()
    config.data.update(kind="arrays", image_size=224, n_train=0, n_val=0, n_test=0)
    config.activations.update(site="arrays")
    config.sae.update(n_features=4096, n_epochs=20.0, batch_size=1024)
    demo.set_k(config, 32)
    config.sae.lr_warmup_steps = 0  # a file may hold few vectors, and a warmup may not outlast the run
    return config
