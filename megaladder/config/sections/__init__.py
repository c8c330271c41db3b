"""The sections of a configuration: models of keys, with their help texts.

No rule between keys, no validator: those are in `rules`.
"""
