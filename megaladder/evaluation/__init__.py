"""Benchmarks: problems → the engine of `rollout` → the grader of `rewards` → files that lm-eval
users can load."""
