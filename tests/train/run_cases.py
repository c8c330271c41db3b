"""The main program of the layout workers: `MODEL_DIR CASES_JSON OUT_JSON` → rank 0 writes the list
of `run_case(model_dir, case)`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from train.plain_head import use_plain_head_if_asked

from megaladder import parallel


def main(run_case: Callable[[str, dict], dict]) -> None:
    model_dir, cases, out = sys.argv[1:4]
    use_plain_head_if_asked()
    if any(case.get("cp", 1) > 1 for case in json.loads(cases)):
        from train.gathered_attention import use_gathered_attention

        use_gathered_attention()
    results = [run_case(model_dir, case) for case in json.loads(cases)]
    if parallel.is_main():
        Path(out).write_text(json.dumps(results))
    parallel.barrier()


def numbers(value):
    """Every number of a worker's result, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) if key != "name" for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []
