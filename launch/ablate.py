"""Measure what features do: `python -m launch.ablate --config=configs/demo.py --workdir=runs/demo`."""

from launch import start

if __name__ == "__main__":
    start.run_stages(["ablation"])
