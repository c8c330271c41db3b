"""Run and evaluation folders as records.

Which model, which step, what it started from, its scores."""
