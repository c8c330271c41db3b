"""Curation of training data as repeatable verbs.

Score, select, decontaminate, deduplicate, sample, stats. No torch in this folder."""
