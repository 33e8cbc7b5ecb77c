"""Describe what every feature sees:
`python -m launch.analyze --config=configs/demo.py --workdir=runs/demo`."""

from launch import start

if __name__ == "__main__":
    start.run_stages(["analysis"])
