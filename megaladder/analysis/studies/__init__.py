"""Analyses of finished runs, each a pure function and the verb that calls it. No torch."""
