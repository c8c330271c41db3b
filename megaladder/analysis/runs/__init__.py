"""Run and evaluation folders as records: which model, which step, what it started from, its
scores."""
