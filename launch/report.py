"""Write the HTML report again: `python -m launch.report --config=configs/demo.py --workdir=runs/demo`."""

from launch import start

if __name__ == "__main__":
    start.run_stages(["report"])
