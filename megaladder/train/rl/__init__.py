"""The parts of the GRPO loop in `train/grpo.py`.

Problems, rounds of graded rollouts, mini-batches, policy updates, bookkeeping.
"""
