"""Curation of training data as repeatable verbs: score, select, decontaminate, deduplicate, sample,
stats. No torch in this folder."""
