"""Benchmarks of a model, from problems to files of results.

Problems → the engine of `rollout` → the grader of `rewards` → files that lm-eval users can load."""
