"""Who may import whom, read from the syntax trees and tried.

Top-level imports count, and imports inside functions too where a folder must not need a package at
all. `if TYPE_CHECKING:` does not.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "megatron", "vllm", "transformer_engine", "triton", "transformers")
# One direction: a folder may import those in its row (and itself, and the root files). Absent row =
# anything.
MAY_IMPORT = {
    "config": {"types", "errors", "config"},
    # rows name their verifier, which says whether they can be graded
    "data": {"config", "data", "rewards"},
    "model": {"config", "data", "model", "kernels", "checkpoints_conv"},
    "train": {
        "config",
        "data",
        "ledger",
        "model",
        "checkpoint",
        "rollout",
        "rewards",
        "kernels",
        "checkpoints_conv",
        "train",
        "evaluation",
    },
    "rollout": {"config", "data", "model", "kernels", "checkpoints_conv", "rollout", "rewards"},
    "rewards": {"config", "rewards"},
    # the steps of a run are checkpoints, streamed into one engine
    "evaluation": {
        "config",
        "data",
        "rollout",
        "rewards",
        "ledger",
        "evaluation",
        "checkpoint",
        "checkpoints_conv",
    },
    # curation asks a teacher through the evaluation's engine and grader
    "curate": {"config", "data", "rollout", "rewards", "evaluation", "ledger", "curate"},
    "checkpoint": {"config", "model", "checkpoints_conv", "checkpoint"},
    "ledger": {"model", "ledger"},
    "plan": {"config", "model", "plan"},  # of model only hf_config, which is as free of torch
}
ROOT_FILES = {
    "types",
    "errors",
    "capabilities",
    "run_dir",
    "log",
    "platform",
    "parallel",
    "finished",
    "process",
    "startup",
    "console",
    "files",
}
# `analyze shift` may inside functions
TORCH_FREE = (
    "cli",
    "process",
    "files",
    "console",
    "config",
    "rewards",
    "ledger",
    "plan",
    "analysis",
)
TORCH_FREE_FILES = (
    "__init__.py",
    "types.py",
    "errors.py",
    "capabilities.py",
    "run_dir.py",
    "log.py",
    "finished.py",
)
# `analyze shift` runs models; TensorBoard's writer
MAY_USE_TORCH_IN_FUNCTIONS = ("megaladder/analysis/shift", "megaladder/trackers")


def _imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(module, inside a function, line) of every import; relative ones resolved; type-checking
    blocks left out."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    base = ".".join(
                        [*module.split(".")[: -child.level], *filter(None, [child.module])]
                    )
                yield base, inside, child.lineno
                if base == "megaladder":
                    yield from (
                        (f"megaladder.{alias.name}", inside, child.lineno) for alias in child.names
                    )
            else:
                yield from visit(
                    child,
                    inside
                    or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
                )

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def _folder(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "megaladder" and len(parts) > 2 else parts[0]


FILES = sorted(
    path
    for top in ("megaladder", "kernels", "checkpoints_conv")
    for path in (ROOT / top).rglob("*.py")
)


def test_all_that_ask_an_engine_say_what_ends_an_answer() -> None:
    """`data.chat.stops.stop_token_ids` decides it; a caller that left it out would sample past the
    end of turn that training taught."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if "rollout" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "SamplingParams"
        and node.keywords
        and "stop_token_ids" not in {keyword.arg for keyword in node.keywords}
    ]
    assert silent == []


def test_imports_go_one_way() -> None:
    wrong = []
    for path in FILES:
        allowed = MAY_IMPORT.get(_folder(path))
        for name, _, line in _imports(path) if allowed is not None else ():
            parts = name.split(".")
            if (
                parts[0] == "megaladder"
                and len(parts) > 1
                and parts[1] not in allowed | ROOT_FILES | {"__version__"}
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def _rooms_named_in(path: Path) -> set[str]:
    """Folders and root files that a file imports in any way, its own apart."""
    return {name.split(".")[1] for name in _every_edge(path)} - {_folder(path).removesuffix(".py")}


def test_the_rooms_have_no_circle() -> None:
    """Imports inside functions and for typing count: a room can be read, and moved, by itself."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        edges.setdefault(_folder(path).removesuffix(".py"), set()).update(_rooms_named_in(path))
    assert _circle(edges) is None


# Everything else asks `parallel` and `platform`. A file leaves this list with its last such name.
NAMES_PROCESS_GROUPS = {
    "megaladder/parallel.py": "the one place that makes groups and asks for them",
    "megaladder/model/context_parallel.py": "collectives with a gradient over the group it is given",
    "megaladder/dryrun/world.py": "stands in for torch.distributed in a dry run",
    "megaladder/dryrun/record.py": "the process group that records instead of sending",
    "checkpoints_conv/live_model.py": "gathers each tensor along pipeline and tensor groups",
    "kernels/shard.py": "the loss head's reductions over the group it is given",
}
NAMES_CUDA = {
    "megaladder/platform.py": "the one place that knows the device",
    "megaladder/preflight/doctor.py": "says why CUDA is missing, without importing platform",
    "kernels/linear_common.py": "free memory bounds the block of logits",
    "kernels/linear_loss.py": "events keep a tensor until the device has read it",
    "kernels/triton_kernels/configs.py": "a launch is on the tensor's device",
}


def _names_in_code(path: Path) -> set[str]:
    """Dotted names that a file imports or uses; `as` names are resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alias, names = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            alias |= {one.asname: one.name for one in node.names if one.asname}
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{one.name}" for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            names.add(f"{alias.get(first, first)}{dot}{rest}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".cuda"):
            names.add("torch.cuda")
    return names


@pytest.mark.parametrize(
    ("listed", "is_one"),
    [
        (
            NAMES_PROCESS_GROUPS,
            lambda name: (
                (
                    name.startswith("torch.distributed")
                    and not name.startswith("torch.distributed.checkpoint")  # a format of files
                )
                or "parallel_state" in name.split(".")
            ),
        ),
        (NAMES_CUDA, lambda name: name.startswith("torch.cuda")),
    ],
    ids=["process groups", "CUDA"],
)
def test_few_files_name(listed: dict[str, str], is_one: Callable[[str], bool]) -> None:
    found = {
        str(path.relative_to(ROOT)) for path in FILES if any(map(is_one, _names_in_code(path)))
    }
    assert found == set(listed)


def test_kernels_and_mappings_know_nothing_of_the_rest() -> None:
    wrong = []
    for path in [*(ROOT / "kernels").rglob("*.py"), ROOT / "checkpoints_conv" / "mapping.py"]:
        if not path.exists():
            continue
        own = f"megaladder.{path.relative_to(ROOT).parts[0]}"
        for name, _, line in _imports(path):
            if name.startswith("megaladder.") and not name.startswith((own, "megaladder.errors")):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_training_knows_of_evaluation_in_one_place() -> None:
    """The benchmarks between its steps; of analyses it knows nothing."""
    train = ROOT / "megaladder" / "train"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in train.rglob("*.py")
        for name, _, line in _imports(path)
        if name.startswith("megaladder.analysis")
        or (name.startswith("megaladder.evaluation") and train / "evaluation" not in path.parents)
    ]
    assert wrong == []


def test_torch_free_folders_import_no_torch() -> None:
    wrong = []
    for path in FILES:
        relative = str(path.relative_to(ROOT))
        free_file = path.parent == ROOT / "megaladder" and path.name in TORCH_FREE_FILES
        if not free_file and not (
            relative.startswith("megaladder/") and _folder(path) in TORCH_FREE
        ):
            continue
        for name, inside, line in _imports(path):
            heavy = name.split(".")[0] in (
                "torch",
                "megatron",
                "vllm",
                "triton",
                "transformer_engine",
            )
            if heavy and not (inside and relative.startswith(MAY_USE_TORCH_IN_FUNCTIONS)):
                wrong.append(f"{relative}:{line} imports {name}")
    assert wrong == []


def test_engines_are_imported_only_where_they_live() -> None:
    """vLLM, Triton and Transformer Engine are never needed to import a module: inside functions, or
    guarded in kernels/."""
    wrong = []
    for path in FILES:
        for name, inside, line in _imports(path):
            package = name.split(".")[0]
            if package in ("vllm", "transformer_engine") and not inside:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} at module level")
            if package == "triton" and _folder(path) != "kernels":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} outside kernels/")
            if package == "vllm" and _folder(path) not in ("rollout", "evaluation"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} outside rollout/")
    assert wrong == []


def _loaded_by(statement: str) -> set[str]:
    script = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    return {name.split(".")[0] for name in loaded} | {"torch._dynamo"} & set(loaded)


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert not _loaded_by(
        "import megaladder, megaladder.cli, megaladder.errors, megaladder.process.launch"
    ) & {*HEAVY, "numpy", "pydantic"}


def test_training_on_a_cpu_starts_without_torch_s_compiler() -> None:
    """It takes as long to import as all the rest."""
    on_a_cpu = "import os; os.environ['MEGALADDER_PLATFORM'] = 'cpu'"
    found = _loaded_by(f"{on_a_cpu}; import megaladder.train.sft, megaladder.train.grpo")
    assert "megatron" in found and not found & {"torch._dynamo", "transformers", "vllm"}


TORCH_FREE_PARTS = (
    *("config", "types", "log", "run_dir"),
    *("preflight.check", "rewards", "analysis", "plan"),
)


def _modules_of(part: str) -> list[str]:
    path = ROOT / "megaladder" / part.replace(".", "/")
    if not path.is_dir():
        return [f"megaladder.{part}"]
    files = [file for file in path.glob("*.py") if file.stem != "__init__"]
    return [f"megaladder.{part}.{file.stem}" for file in files]


def test_torch_free_parts_load_without_torch() -> None:
    """All in one process: what none of them loads, none loads alone."""
    modules = [module for part in TORCH_FREE_PARTS for module in _modules_of(part)]
    assert len(modules) > len(TORCH_FREE_PARTS)
    assert not _loaded_by(f"import {', '.join(modules)}") & {
        "torch",
        "megatron",
        "vllm",
        "triton",
        "transformer_engine",
    }


def _circle(edges: dict[str, set[str]]) -> list[str] | None:
    """A path that leads back to its start, or None."""
    done: set[str] = set()

    def walk(node: str, above: tuple[str, ...]) -> list[str] | None:
        if node in above:
            return [*above[above.index(node) :], node]
        if node in done:
            return None
        for following in sorted(edges.get(node, ())):
            if found := walk(following, (*above, node)):
                return found
        done.add(node)
        return None

    return next((found for node in sorted(edges) if (found := walk(node, ()))), None)


def _every_edge(path: Path) -> set[str]:
    """Modules of this package that a file names in any import: lazy and typing-only ones too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("megaladder.")}


def test_the_configuration_has_no_circle_of_files() -> None:
    """Sections, then rules, then runs. Imports inside functions and for typing count."""
    folder = ROOT / "megaladder" / "config"
    module_of = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in folder.rglob("*.py")
    }
    modules = set(module_of.values())
    edges = {module: _every_edge(path) & modules - {module} for path, module in module_of.items()}
    assert _circle(edges) is None
    assert not [path for path in folder.rglob("*.py") if "TYPE_CHECKING" in path.read_text("utf-8")]
    for name, edge in edges.items():
        if name.startswith("megaladder.config.sections"):
            assert not {to for to in edge if ".rules" in to or ".resolve" in to}, name


def test_the_two_trainings_do_not_know_each_other() -> None:
    """What SFT and GRPO share has a room of its own."""
    folders = {"supervised": "rl", "rl": "supervised"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for folder, other in folders.items()
        for path in (ROOT / "megaladder" / "train" / folder).rglob("*.py")
        for name, _, line in _imports(path)
        if name.startswith(f"megaladder.train.{other}")
    ]
    assert wrong == []
