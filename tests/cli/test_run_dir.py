"""The run folder survives kills and full disks: atomic files, torn tails, one run per folder, no
step twice."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clean_fork import run_in_fork
from hypothesis import given
from hypothesis import strategies as st
from waiting import pause

from megaladder.errors import ConfigError, DataError
from megaladder.run_dir import (
    JsonlFile,
    RunDir,
    atomic_write,
    drop_rows_after,
    read_jsonl,
    read_object,
    repair_torn_tail,
    to_json,
    write_object,
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=10,
)


@given(_JSON)
def test_json_never_holds_nan_or_infinity(value: object) -> None:
    def nulled(x: object) -> object:
        if isinstance(x, float) and not math.isfinite(x):
            return None
        if isinstance(x, list):
            return [nulled(i) for i in x]
        return {k: nulled(v) for k, v in x.items()} if isinstance(x, dict) else x

    def refuse(name: str) -> None:
        raise AssertionError(name)

    try:
        text = to_json(value)
        text.encode("utf-8")
    except UnicodeEncodeError:
        return  # lone surrogates are refused where data is read
    assert json.loads(text, parse_constant=refuse) == nulled(value)


def test_json_takes_numpy_and_paths_and_keeps_unicode_and_full_precision() -> None:
    value = {
        "b": np.float32(0.5),
        "a": np.arange(2),
        "p": Path("x"),
        "nan": np.float64("nan"),
        "u": "½ 二",
        "f": 0.1 + 0.2,
    }
    text = to_json(value, sort_keys=True)
    assert (
        text
        == '{"a": [0, 1], "b": 0.5, "f": 0.30000000000000004, "nan": null, "p": "x", "u": "½ 二"}'
    )
    with pytest.raises(TypeError, match="no JSON form for object"):
        to_json(object())


_ROW = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.integers(), max_size=3)


@given(st.lists(_ROW, min_size=1, max_size=5), st.data())
def test_a_kill_at_any_byte_costs_at_most_the_row_being_written(
    tmp_path_factory, rows, data
) -> None:
    """Every prefix of the file: the complete rows are kept, the torn one is cut off before the next
    append."""
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    with JsonlFile(path) as file:
        for row in rows:
            file.append(row)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert list(read_jsonl(path)) == rows[:complete]
    with JsonlFile(path) as file:
        assert file.repaired_bytes == cut - (whole[:cut].rfind(b"\n") + 1)
        file.append({"new": 1})
    assert list(read_jsonl(path)) == [*rows[:complete], {"new": 1}]


def test_only_newlines_separate_rows(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlFile(path) as file:
        file.append({"text": "a\u2028b\u0085c\r\nd"})
        file.append({"text": "e"})
    assert [row["text"] for row in read_jsonl(path)] == ["a\u2028b\u0085c\r\nd", "e"]


def test_torn_tail_longer_than_a_block(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 200_000)
    assert repair_torn_tail(path) == 200_000
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(b"y" * 70_000)
    assert repair_torn_tail(path) == 70_000
    assert path.read_bytes() == b""
    assert repair_torn_tail(tmp_path / "absent") == 0


def test_broken_row_names_file_and_line(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not a JSON object"):
        list(read_jsonl(path))


@pytest.mark.parametrize("sealed", [True, False])
def test_every_changed_byte_of_a_row_is_told(tmp_path, sealed) -> None:
    path = tmp_path / "journal.jsonl"
    rows = [{"id": "a", "text": "ü\n", "x": float("nan")}, {"id": "b", "text": "2", "x": 0.1}]
    with JsonlFile(path) as file:
        for row in rows:
            file.append(row)
    assert list(read_jsonl(path, sealed=sealed)) == [{**rows[0], "x": None}, rows[1]]
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for place in range(second, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = read_jsonl(path, sealed=sealed)
        assert next(found)["id"] == "a"
        with pytest.raises(DataError, match=r"journal.jsonl:2: .*fix: delete that line"):
            list(found)


def test_every_changed_byte_of_an_object_is_told(tmp_path) -> None:
    path, value = tmp_path / "lineage.json", {"b": [1, 2.5, None], "a": {"é": "ü"}}
    write_object(path, value)
    assert read_object(path, "x") == value
    whole = path.read_bytes()
    blank = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_object(path, "copy it") == value
            blank.append(whole[place : place + 1])
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and str(error).endswith("fix: copy it")
    assert set(blank) <= {b"\n", b" "}  # of no meaning in JSON
    path.write_text('{"made": "by hand"}')
    assert read_object(path, "x") == {"made": "by hand"}


def test_a_changed_config_is_told(tmp_path) -> None:
    with RunDir(tmp_path / "run", writer=True) as run:
        run.write_config("optim:\n  lr: 1.0e-05\n")
        path = run.path / "config.yaml"
        assert run.read_config() == {"optim": {"lr": 1e-5}}
        path.write_text(path.read_text().replace("1.0e-05", "1.0e-06"))
        with pytest.raises(ConfigError, match=r"config\.yaml: its content has changed"):
            run.read_config()
        path.write_text("\n".join(path.read_text().splitlines()[1:]))
        assert run.read_config() == {"optim": {"lr": 1e-6}}


def test_rows_past_the_resumed_step_go(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 8)) + '{"step": 8, "lo')
    assert drop_rows_after(path, 5) == 2
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3, 4, 5]
    assert drop_rows_after(path, 5) == 0
    assert drop_rows_after(tmp_path / "absent.jsonl", 5) == 0


_WRITER = """
import sys
from megaladder.run_dir import atomic_write
i = 0
while True:
    atomic_write(sys.argv[1], chr(97 + i % 26) * 400_000)
    i += 1
    if i == 1: print("go", flush=True)
"""


def test_killed_writers_leave_old_or_new_content_never_a_mixture(tmp_path) -> None:
    target = tmp_path / "file"
    rng = np.random.default_rng(0)
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(target)], stdout=subprocess.PIPE
        )
        assert writer.stdout.readline() == b"go\n"
        pause(float(rng.uniform(0, 0.05)))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = target.read_text()
        assert len(content) == 400_000
        assert len(set(content)) == 1


def _write_with_a_size_limit(target: str) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        atomic_write(target, "n" * 200_000)
    except OSError:
        return 7
    return 0


def test_a_full_disk_keeps_the_old_file_and_leaves_no_litter(tmp_path) -> None:
    """A file-size limit of the process stands in for ENOSPC: the write fails half way."""
    target = tmp_path / "config.yaml"
    atomic_write(target, "old")
    assert run_in_fork(_write_with_a_size_limit, str(target)) == 7
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


_HOLDER = """
import sys, time
from megaladder.run_dir import RunDir
run = RunDir(sys.argv[1], True)
print('held', flush=True)
time.sleep(60)
"""


def test_one_run_per_folder_and_a_killed_one_does_not_block(tmp_path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on .* fix: "):
            RunDir(tmp_path, writer=True)
        RunDir(tmp_path, writer=False)  # other ranks only ask for paths
    finally:
        holder.kill()
        holder.wait()
    with RunDir(tmp_path, writer=True) as run:
        with pytest.raises(ConfigError, match="this process already runs in it"):
            RunDir(tmp_path, writer=True)
        run.write_config("run_dir: x\n")
    RunDir(tmp_path, writer=True).close()


def test_config_and_fingerprint_round_trip(tmp_path) -> None:
    with RunDir(tmp_path / "a" / "run", writer=True) as run:
        assert run.read_config() is None
        run.write_config("optim: {lr: 1.0e-05}\n")
        run.write_fingerprint({"data_sha256": "ab"})
        assert run.read_config() == {"optim": {"lr": 1e-5}}
    fingerprint = json.loads((tmp_path / "a" / "run" / "fingerprint.json").read_text("utf-8"))
    assert fingerprint["data_sha256"] == "ab"
    assert fingerprint["environment"]["packages"]["torch"].startswith("2.")
    assert not any(
        os.environ.get(name, "x" * 99) in json.dumps(fingerprint)
        for name in ("HF_TOKEN", "WANDB_API_KEY")
    )
    (tmp_path / "a" / "run" / "config.yaml").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.yaml:1: not valid YAML"):
        RunDir(tmp_path / "a" / "run", writer=False).read_config()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        RunDir(tmp_path / "file", writer=True)
