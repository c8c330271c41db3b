"""What people get wrong when they start an SFT run: exit status 2, one message that names the place
and the way out, no traceback."""

import json
import shutil

import pytest
from clean_fork import run_in_fork
from tiny_models import build_tiny_model

from megaladder import cli

GOOD = {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Case → (status, stdout, stderr) of one `megaladder sft`."""
    folder = tmp_path_factory.mktemp("bad")
    model = build_tiny_model(folder / "model", hidden=32)
    data = {
        "good": "".join(
            json.dumps(GOOD | {"question": f"What is {n} + 1?"}) + "\n" for n in range(16)
        ),
        "malformed": json.dumps(GOOD) + "\n" + '{"question": "What", \n',
        "empty": "",
        "no-assistant": json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n",
        "long": json.dumps(GOOD | {"answer": "long " * 500}) + "\n",
    }
    for name, text in data.items():
        (folder / f"{name}.jsonl").write_text(text)
    broken = {
        name: shutil.copytree(model, folder / name)
        for name in ("no-tokenizer", "truncated", "other")
    }
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (broken["no-tokenizer"] / file).unlink(missing_ok=True)
    weights = broken["truncated"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])

    def sft(data="good", model=model, run_dir=None, *extra):
        return [
            "sft",
            "--run-dir",
            str(folder / (run_dir or "unused")),
            "--model.path",
            str(model),
            "--data.path",
            str(folder / f"{data}.jsonl"),
            "--data.seq-length",
            "64",
            "--train.global-batch-size",
            "4",
            "--train.max-steps",
            "2",
            *extra,
        ]

    cases = {
        "unknown key": [*sft(), "--train.epoch", "3"],
        "tp does not divide heads": [
            *sft(),
            "--parallel.tp",
            "3",
            "--parallel.sequence-parallel",
            "false",
        ],
        "malformed row": sft("malformed"),
        "empty file": sft("empty"),
        "no assistant text": sft("no-assistant"),
        "sample too long": [*sft("long"), "--data.truncation", "error"],
        "missing tokenizer": sft(model=broken["no-tokenizer"]),
        "truncated safetensors": sft(model=broken["truncated"]),
        "missing data": sft("nowhere"),
        "fp8 on a CPU": [*sft(), "--train.fp8", "tensorwise"],
        "a good run": sft(run_dir="run"),
        "resume with another model": [
            *sft(model=broken["other"], run_dir="run"),
            "--train.max-steps",
            "4",
        ],
        "resume with another batch size": [
            *sft(run_dir="run"),
            "--train.max-steps",
            "4",
            "--train.global-batch-size",
            "8",
        ],
    }
    found = _run(cases, folder)
    shard = sorted((folder / "run" / "checkpoints" / "step_2").glob("*.distcp"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return found | _run(
        {"corrupted shard": [*sft(run_dir="run"), "--train.max-steps", "4"]}, folder
    )


def _run(cases, folder):
    found = {}
    for name, arguments in cases.items():
        out, err = folder / "stdout.txt", folder / "stderr.txt"
        status = run_in_fork(
            lambda arguments=arguments: cli.main(arguments), stdout=out, stderr=err
        )
        found[name] = {"status": status, "stdout": out.read_text(), "stderr": err.read_text()}
    return found


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("unknown key", ["--train.epoch", "--train.epochs"]),
        ("tp does not divide heads", ["tp 3", "4", "fix"]),
        ("malformed row", ["malformed.jsonl:2", "expected", "found", "fix"]),
        ("empty file", ["empty.jsonl", "fix"]),
        ("no assistant text", ["no-assistant.jsonl:1", "assistant", "fix"]),
        ("sample too long", ["long.jsonl:1", "64", "data.truncation", "fix"]),
        ("missing tokenizer", ["no-tokenizer", "tokenizer.json", "fix"]),
        ("truncated safetensors", ["truncated", "model.safetensors"]),
        ("missing data", ["nowhere.jsonl", "fix"]),
        ("fp8 on a CPU", ["train.fp8 tensorwise", "CUDA", "fix"]),
        ("resume with another model", ["model.path", "other", "fix"]),
        ("resume with another batch size", ["train.global_batch_size", "4", "8", "fix"]),
        ("corrupted shard", [".distcp", "sha256", "fix"]),
    ],
)
def test_message_and_status(outcomes, case, words):
    outcome = outcomes[case]
    assert outcome["status"] == 2, outcome
    assert "Traceback" not in outcome["stderr"]
    assert all(word in outcome["stderr"] for word in words), outcome["stderr"]


def test_the_good_run_ends_with_the_next_command(outcomes):
    good = outcomes["a good run"]
    assert good["status"] == 0, good
    assert "next: megaladder convert megatron-to-hf" in good["stdout"]
