"""Extract the activations of one site:
`python -m launch.extract --config=configs/demo.py --workdir=runs/demo`."""

from launch import start

if __name__ == "__main__":
    start.run_stages(["activations"])
