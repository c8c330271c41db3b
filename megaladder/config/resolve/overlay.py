"""`base: other.yaml` at the top of a YAML file.

The other file's keys first, this file's keys over them, section by section.

A list or scalar replaces the base's; a base may have a base. Every key remembers which file and
line it came from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from megaladder.config.resolve.slips import refuse_other_file
from megaladder.config.strict_yaml import KeyPath, YamlFile, load_yaml, merge
from megaladder.errors import ConfigError

BASE_KEY = "base"


@dataclass(frozen=True)
class LayeredFile(YamlFile):
    """A file with its bases put under it.

    `origins` maps each key path to the file whose line `lines` gives.
    """

    origins: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, key: KeyPath) -> str:
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.origins[key[:end]]}:{self.lines[key[:end]]}"
        return self.path


def load_layered(path: str | Path, _above: tuple[Path, ...] = ()) -> YamlFile:
    """Like `load_yaml`, with `base:` resolved (relative to the file that names it).

    A circle of bases is a ConfigError.
    """
    refuse_other_file(str(path))
    file = load_yaml(path)
    if BASE_KEY not in file.values:
        return file
    base_name = file.values.pop(BASE_KEY)
    where = file.where((BASE_KEY,))
    if not isinstance(base_name, str):
        raise ConfigError(
            f"{where}: base should be the path of a YAML file, found {base_name!r}; fix: base:"
            " ../base.yaml"
        )
    base_path = Path(os.path.normpath(Path(path).parent / base_name))
    if not base_path.is_file():
        raise ConfigError(
            f"{where}: base {base_name}: no such file ({base_path}); fix: a path relative to {path}"
        )
    chain = (*_above, Path(path).resolve())
    if base_path.resolve() in chain:
        raise ConfigError(
            f"{where}: base {base_name} leads back to {base_path}; fix: remove one of the `base:`"
            " lines"
        )
    base = load_layered(base_path, chain)
    lines = {key: line for key, line in file.lines.items() if key != (BASE_KEY,)}
    origins = {
        **{key: getattr(base, "origins", {}).get(key, base.path) for key in base.lines},
        **dict.fromkeys(lines, file.path),
    }
    return LayeredFile(file.path, merge(base.values, file.values), {**base.lines, **lines}, origins)
