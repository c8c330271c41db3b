"""What a run, an evaluation or a data set cost: tokens, model FLOPs and CPU seconds by phase."""
