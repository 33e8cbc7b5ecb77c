"""The whole study, all stages: `python -m launch.pipeline --config=configs/demo.py --workdir=runs/demo`.

Started again it goes on where it stopped; finished stages are up to date.
"""

from launch import start

if __name__ == "__main__":
    start.run_stages(start.stages.STAGES)
