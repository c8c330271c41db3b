"""What can be known before a run.

Does the configuration fit model, data and machine (`check`), and what is installed (`doctor`).
Starts nothing."""
