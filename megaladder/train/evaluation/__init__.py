"""Benchmarks between the steps of a training: what is asked, who answers, and what the scores
decide."""
