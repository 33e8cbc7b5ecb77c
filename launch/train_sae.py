"""Train the sparse autoencoder: `python -m launch.train_sae --config=configs/demo.py --workdir=runs/demo`."""

from launch import start

if __name__ == "__main__":
    start.run_stages(["sae"])
