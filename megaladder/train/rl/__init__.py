"""What the loop in `train/grpo.py` is made of: problems, rounds of graded rollouts, mini-batches,
policy updates, bookkeeping."""
