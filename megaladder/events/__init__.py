"""What happens to a run: who may hear of it, and from where it is told.

Callbacks of the Python API and trackers (W&B, MLflow …) are the same thing, told by the same reader
of the run folder: one in the calling process, the others in threads of the run's own."""
