"""From a YAML file and a command line to one validated configuration.

`resolver` (values, flags, messages) on `strict_yaml` (text, lines).
"""

from megaladder.config.resolve.resolver import checked_values, from_yaml, resolve, to_yaml, validate

__all__ = ["checked_values", "from_yaml", "resolve", "to_yaml", "validate"]
