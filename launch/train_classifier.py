"""Train the classifier: `python -m launch.train_classifier --config=configs/demo.py --workdir=runs/demo`."""

from launch import start

if __name__ == "__main__":
    start.run_stages(["classifier"])
