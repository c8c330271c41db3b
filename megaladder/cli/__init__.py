"""The command line: `megaladder VERB [run.yaml] [--a.b.c value …]`."""

from megaladder.cli.dispatch import find_verb, load, main, overview, run_example
from megaladder.cli.table import VERBS, Verb

__all__ = ["VERBS", "Verb", "find_verb", "load", "main", "overview", "run_example"]
