"""`megaladder replay`: a step of a run, computed again from what the run stored."""
