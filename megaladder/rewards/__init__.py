"""Rewards: the only grader, the processes it runs in, and the terms that make up a reward.

No torch here."""
