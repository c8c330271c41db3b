"""What `check` says of the benchmarks that a training is to be evaluated on."""

from __future__ import annotations

import os
from pathlib import Path

from megaladder.config.grpo import GrpoConfig
from megaladder.config.sft import SftConfig
from megaladder.preflight.check_data import show


def check_benchmarks(config: SftConfig | GrpoConfig) -> list[str]:
    """Prints what is asked and when; returns what is missing.

    Raises:
        ConfigError: an unknown benchmark, one that cannot run inside a training, or no room for
        prompt and answer.
    """
    section = config.evaluate
    if not section.benchmarks:
        return []
    from megaladder.evaluation.benchmarks.source import DATA_VARIABLE
    from megaladder.evaluation.benchmarks.spec import find_benchmarks, local_files
    from megaladder.train.evaluation.benchmarks import check_room, read_benchmarks, usable

    specs = [usable(spec) for spec in find_benchmarks(section.benchmarks, section.registry)]
    data = section.data_dir or os.environ.get(DATA_VARIABLE)
    away = [
        spec.name
        for spec, name in zip(specs, section.benchmarks, strict=False)
        if not local_files((name,), section.registry, data)
    ]
    model = config.model.tokenizer or config.model.path
    if away or not Path(model).is_dir():
        show("evaluate", ", ".join(spec.name for spec in specs))
        return [f"rows of {name}: not here, fetched from the hub at the start" for name in away]
    extract = config.reward.extract if isinstance(config, GrpoConfig) else config.evaluate.extract
    found = read_benchmarks(config, extract, config.model.path)
    check_room(found, config.data.seq_length if isinstance(config, GrpoConfig) else None)
    for line in found.lines(section):
        show("evaluate", line)
    return []
