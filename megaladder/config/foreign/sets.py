"""Another trainer's data sets as our `data.path`, `data.mixture` and `data.fields`.

A field of a set that is neither carried over nor known to change nothing is refused by its name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaladder.config.foreign.work import Conversion, as_list, shown
from megaladder.errors import ConfigError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DATA_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|txt)(\.\w+)?$")
# a field of one set → ours; None changes nothing, or is read elsewhere
PARTS: dict[str, str | None] = {
    "path": "source",
    "id": "source",
    "name": "config",
    "config": "config",
    "split": "split",
    "revision": "revision",
    "data_files": None,
    "columns": None,
    "ds_type": None,
}
OURS = {"source": "path", "config": "config", "split": "split", "revision": "revision"}
# values of other fields of axolotl's sets that are as it is here
USUAL: dict[str, Sequence[Any]] = {
    "message_property_mappings": (
        {"role": "role", "content": "content"},
        {"role": "from", "content": "value"},
    ),
    "message_field_role": ("role", "from"),
    "message_field_content": ("content", "value"),
    "roles_to_train": (["assistant"], ["assistant", "gpt"], ["gpt"]),
    "train_on_eos": ("turn",),
    "drop_system_message": (False,),
    "field_messages": ("messages", "conversations", "conversation"),
    "field_thinking": ("reasoning_content", "reasoning", "thinking"),
    "field_tools": ("tools",),
    "field": ("text",),
    "trust_remote_code": (False,),
    "split_thinking": (False,),
}
# names of a role → spellings that the layouts here read
ROLES = {
    "user": {"user", "human"},
    "assistant": {"assistant", "gpt", "model"},
    "system": {"system"},
    "tool": {"tool", "observation"},
}
# LLaMA-Factory: column of dataset_info.json → ours, and the names that are read without a word
ALPACA = {
    "prompt": ("instruction", ("instruction",)),
    "query": ("input", ("input", "")),
    "response": ("output", ("output",)),
    "system": ("system", ("system",)),
    "history": ("history", ("history",)),
}
SHAREGPT = {
    "messages": ("conversations", ("conversations", "messages")),
    "system": ("system", ("system",)),
    "tools": ("tools", ("tools",)),
}
TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ROLES["user"],
    "assistant_tag": ROLES["assistant"],
    "observation_tag": ROLES["tool"],
    "function_tag": ("function_call",),
    "system_tag": ROLES["system"],
}


def sources(work: Conversion) -> None:
    """The keys of `data` that say which rows are read and what their columns are called."""
    if configs := work.take("dataset_configs"):
        work.put("data.config", as_list(configs)[0], "dataset_configs")
    _columns(work)
    if names := work.take("lf_dataset"):
        _llamafactory_sets(work, names)
    if sets := work.take("sets"):
        _listed_sets(work, sets)
    if (share := work.take("holdout")) not in (None, 0, 0.0):
        work.put(
            "data.holdout", share, "val_set_size" if "axolotl" in work.trainer.name else "val_size"
        )
    for path in as_list(work.ours.get("data.path", [])):
        if HUB_ID.fullmatch(str(path)) and not DATA_FILE.search(str(path)):
            work.say("to do", "data.path", f"{path} is a hub id: set data.revision to its commit")


def _columns(work: Conversion) -> None:
    """Columns under other names; verl's may hold an object in which the text stands."""
    usual = {
        "prompt_key": ("prompt", ("prompt", "question", "messages"), "prompt_inside"),
        "response_key": ("answer", ("answer", "response", "messages"), "response_inside"),
        "prompt_column": ("question", ("prompt", "question", "problem"), ""),
        "text_field": ("text", ("text",), ""),
        "messages_key": ("messages", ("messages", "conversations"), ""),
    }
    fields = {}
    for part, (ours, known, inside) in usual.items():
        column = work.take(part)
        within = as_list(work.take(inside, []))
        if isinstance(column, str) and (column not in known or within):
            fields[ours] = ".".join([column, *map(str, within[:1])])
        if len(within) > 1:
            work.say("refused", part, f"{shown(within)}: one column has one text")
    if fields:
        work.put("data.fields", fields, ", ".join(fields.values()))


def _listed_sets(work: Conversion, sets: Any) -> None:
    """A list of sets, each with its source, part and layout."""
    listed = [one for one in as_list(sets) if isinstance(one, dict)]
    parts = [part for one in listed if (part := _part(work, one)).get("source")]
    if len(parts) == 1:
        for theirs, value in parts[0].items():
            work.put(f"data.{OURS.get(theirs, theirs)}", value, f"datasets.{theirs}")
    elif parts:
        work.put("data.mixture", parts, "datasets")


def _part(work: Conversion, one: Mapping[str, Any]) -> dict[str, Any]:
    """One set as a part of ours; what it says beside that is judged field by field."""
    part: dict[str, Any] = {}
    for key, value in one.items():
        if value is None:
            continue
        if key in PARTS:
            if ours := PARTS[key]:
                part[ours] = _split(work, "datasets.split", value) if key == "split" else value
        elif key == "type":
            _kind(work, value)
        elif key == "roles" and _known_roles(value):
            work.say("no effect", "datasets.roles", "these names of roles are read")
        elif key == "message_property_mappings" and _as_read(value):
            work.say("no effect", f"datasets.{key}", "these fields of a turn are read")
        elif value in USUAL.get(key, ()):
            work.say("no effect", f"datasets.{key}", f"{shown(value)}: as it is here")
        elif key in ("field_messages", "field_tools"):
            part.setdefault("fields", {})["messages" if key == "field_messages" else "tools"] = (
                value
            )
        else:
            work.say("refused", f"datasets.{key}", f"{shown(value)}: no field of a set known here")
    if files := one.get("data_files"):
        part["source"] = _files(part.get("source"), files)
    return part


def _as_read(mapping: Any) -> bool:
    return isinstance(mapping, dict) and all(
        value in {"role": ("role", "from"), "content": ("content", "value")}.get(key, (key,))
        for key, value in mapping.items()
    )


def _known_roles(value: Any) -> bool:
    return isinstance(value, dict) and all(
        set(map(str, as_list(names))) <= ROLES.get(role, set()) for role, names in value.items()
    )


def _split(work: Conversion, key: str, value: Any) -> str | None:
    split = str(value or "")
    if "[" in split:
        text = f"{split}: parts of a split; megaladder data select makes such a file"
        work.say("refused", key, text)
    return split.split("[")[0] or None


def _files(source: Any, files: Any) -> Any:
    """The files of a set: as they are, or those of a folder; a hub id has its own."""
    listed = [str(name) for name in as_list(files)]
    known = str(source) in ("json", "csv", "parquet", "arrow", "text")
    paths = listed if known else [f"{source}/{name}" for name in listed]
    return paths[0] if len(paths) == 1 else paths


def _kind(work: Conversion, value: Any) -> None:
    """axolotl's `type`: its layouts of turns are read, its prompts of other text are not written."""
    kind = str(value)
    if isinstance(value, str) and kind.split(".")[0] in ("chat_template", "sharegpt"):
        text = f"{kind}: layouts are recognised (megaladder data stats)"
        work.say("no effect", "datasets.type", text)
    elif isinstance(value, str) and kind.split(":")[0] == "completion":
        text = f"{kind}: loss on plain text is not built; rows are conversations, or layout `text`"
        work.say("refused", "datasets.type", text)
    else:
        text = "axolotl writes a prompt in words of its own; here the chat template does"
        work.say("refused", "datasets.type", f"{shown(value)[:80]}: {text}")


def _llamafactory_sets(work: Conversion, names: Any) -> None:
    """Names of data/dataset_info.json → files; without that file, as its folder has them."""
    given = names.split(",") if isinstance(names, str) else as_list(names)
    listed = [str(name).strip() for name in given]
    folder = Path(str(work.take("lf_dataset_dir", "data"))).expanduser()
    known = _dataset_info(folder / "dataset_info.json")
    for name in (name for name in listed if name not in known):
        file = folder / "dataset_info.json"
        guess = folder / f"{name}.json"
        text = f"{name} is not in {file}: check that {guess} is its file"
        work.say("to do", "dataset", text)
    parts = [_llamafactory_part(work, folder, name, known.get(name, {})) for name in listed]
    if len(parts) == 1 or all(set(part) == {"source"} for part in parts):
        paths = [part["source"] for part in parts]
        work.put("data.path", paths[0] if len(paths) == 1 else paths, "dataset")
        for key in ("config", "split", "fields"):
            if value := parts[0].get(key):
                work.put(f"data.{key}", value, f"dataset_info.json {key}")
    else:
        work.put("data.mixture", parts, "dataset")


def _llamafactory_part(
    work: Conversion, folder: Path, name: str, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """One entry of dataset_info.json as a part of ours. Raises ConfigError for preference pairs."""
    if entry.get("ranking") is True:
        raise ConfigError(
            f"dataset {name}: pairs of a better and a worse answer (ranking: true), which sft does"
            " not train on; fix: another dataset"
        )
    layout = SHAREGPT if entry.get("formatting", "alpaca") == "sharegpt" else ALPACA
    source = entry.get("hf_hub_url") or str(folder / str(entry.get("file_name", f"{name}.json")))
    part: dict[str, Any] = {"source": source}
    if entry.get("subset"):
        part["config"] = entry["subset"]
    if split := _split(work, f"{name}.split", entry.get("split")):
        part["split"] = split
    fields = {}
    for key, column in _object(entry, "columns").items():
        if key not in layout:
            work.say("refused", f"{name}.columns.{key}", f"{column}: no column of text rows here")
        elif column not in layout[key][1]:
            fields[layout[key][0]] = column
    if fields:
        part["fields"] = fields
    for key, tag in _object(entry, "tags").items():
        if str(tag) not in TAGS.get(key, ()):
            work.say("refused", f"{name}.tags.{key}", f"{tag}: not read; rename it in the rows")
    for key in ("num_samples", "folder", "script_url"):
        if entry.get(key):
            work.say("refused", f"{name}.{key}", f"{entry[key]}: not carried over")
    return part


def _object(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object in an entry; an empty one where there is none, or another value."""
    found = entry.get(key)
    return found if isinstance(found, dict) else {}


def _dataset_info(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):  # a name that is none is no file either
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: entry for name, entry in found.items() if isinstance(entry, dict)}
    except (ValueError, RecursionError, AttributeError) as error:
        raise ConfigError(f"{path}: expected JSON, found {error}; fix: the file") from None
