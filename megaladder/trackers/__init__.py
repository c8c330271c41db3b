"""Places outside the run folder that metrics go to: W&B, TensorBoard, MLflow, trackio.

Each is a callback (`events.callback`) in a thread of the run's own. Whatever one raises is reported
once and it is called no more."""
