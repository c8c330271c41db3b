"""Rules between keys, as pure functions of the sections.

Each violation is a line with the values and a fix; all are reported at once.
"""
