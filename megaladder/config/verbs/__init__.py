"""Configurations of the verbs that are no training runs: evaluate, grade, analyze, data, convert,
bench."""
