"""Places outside the run folder that metrics go to.

W&B, TensorBoard, MLflow, trackio, behind one protocol. Whatever they raise is reported once and the
tracker is dropped (`log.RunLog`)."""
