"""Configurations of the verbs that do not train.

Evaluate, grade, analyze, data, convert, bench.
"""
