"""What every stage stands on: preemption, mesh and shardings, stages and manifests, checkpoints, logs."""
