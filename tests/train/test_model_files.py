"""What training changed about template and ends of answers travels with the weights: the files, and
a base model that is fine-tuned, exported, and stops in our own evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import environment
from tiny_models import build_tiny_model, build_tokenizer

from megaladder.data.chat.stops import stop_token_ids
from megaladder.data.chat.tokenizer import DEFAULT_CHAT_TEMPLATE, load_tokenizer
from megaladder.data.store_build import DataSpec, open_store
from megaladder.errors import ModelError
from megaladder.train.model_files import model_files

END_OF_TEXT, END_OF_TURN = 0, 2
QUESTION = (
    "What is {a} + {b}?\n Please reason step by step, and put your final answer within \\boxed{{}}."
)


def as_base_model(folder: Path) -> Path:
    """The tokenizer has the ChatML tokens, ends at <|endoftext|> and has no chat template."""
    (folder / "chat_template.jinja").unlink()
    for name, changes in {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        "config.json": {"eos_token_id": END_OF_TEXT},
        "generation_config.json": {"eos_token_id": END_OF_TEXT, "temperature": 0.5},
    }.items():
        file = folder / name
        known = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**known, **changes}))
    return folder


def chat_rows(file: Path, rows: int = 64) -> Path:
    pairs = [(n % 8, n // 8) for n in range(rows)]
    turns = [
        [
            {"role": "user", "content": QUESTION.format(a=a, b=b)},
            {"role": "assistant", "content": "The answer is \\boxed{5}."},
        ]
        for a, b in pairs
    ]
    file.write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in turns))
    return file


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.fixture
def base(tmp_path) -> Path:
    return as_base_model(build_tokenizer(tmp_path / "base"))


def test_a_base_model_that_learnt_turns_ends_them_everywhere(base, tmp_path):
    tokenizer = load_tokenizer(base)
    assert tokenizer.eos_token == "<|endoftext|>"
    samples = open_store(DataSpec(str(chat_rows(tmp_path / "d.jsonl")), 256), tokenizer, "")
    files = model_files(base, base, tokenizer, samples)
    assert files.end == (END_OF_TURN, "<|im_end|>")
    files.write(tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "chat_template.jinja").read_text() == DEFAULT_CHAT_TEMPLATE
    assert read(out, "config.json")["eos_token_id"] == END_OF_TURN
    # what else stood there is kept
    assert read(out, "generation_config.json") == {
        "eos_token_id": [END_OF_TURN, END_OF_TEXT],
        "temperature": 0.5,
    }
    exported = load_tokenizer(out)
    assert exported.eos_token == "<|im_end|>"
    assert set(stop_token_ids(exported, out)) == {END_OF_TURN, END_OF_TEXT}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert exported.apply_chat_template(turns) == tokenizer.apply_chat_template(turns)


def test_files_that_training_did_not_change_are_copied_byte_for_byte(tmp_path):
    model = build_tokenizer(tmp_path / "chat")
    (model / "config.json").write_text('{"eos_token_id":2,\n "x": 1}')
    (model / "generation_config.json").write_text('{"eos_token_id": [2]}')
    (model / "LICENSE").write_text("free")
    tokenizer = load_tokenizer(model)
    samples = open_store(DataSpec(str(chat_rows(tmp_path / "d.jsonl")), 256), tokenizer, "")
    model_files(model, model, tokenizer, samples).write(tmp_path / "out")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in model.iterdir()}


def test_the_tokenizer_and_template_in_use_replace_the_models_own(tmp_path):
    """model.tokenizer, model.chat_template and its arguments: an export with the model folder's own
    would be prompted otherwise than it was trained."""
    model, other = build_tokenizer(tmp_path / "model"), build_tokenizer(tmp_path / "other", 50)
    (model / "config.json").write_text("{}")
    template = tmp_path / "t.jinja"
    template.write_text(
        "{{ strftime_now('%Y-%m-%d') }}{% if loud %}!{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer = load_tokenizer(other, None, template, False, {"loud": True}, "2025-02-03")
    model_files(model, other, tokenizer).write(tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    # a later day, another program, no arguments: the same prompt
    later = load_tokenizer(out, day="2031-01-01")
    turns = [{"role": "user", "content": "a"}]
    assert later.apply_chat_template(turns, tokenize=False) == "2025-02-03![user]a<|im_end|>"
    assert later.apply_chat_template(turns, tokenize=False, loud=False).startswith("2025-02-03[")


def test_a_damaged_generation_config_is_named(base):
    (base / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config.json: expected .* fix: copy the file"):
        stop_token_ids(load_tokenizer(base), base)


def megaladder(*args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "megaladder", *map(str, args)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_fine_tuned_base_model_stops_in_our_own_evaluation(tmp_path):
    """SFT on chat rows, export, `eval` with a real vLLM: no answer is cut off, each ends at the
    token that training taught. Without it they run on to the limit and the run-on is graded."""
    model = as_base_model(build_tiny_model(tmp_path / "model", hidden=64))
    data = chat_rows(tmp_path / "d.jsonl")
    run, out = tmp_path / "run", tmp_path / "eval"
    megaladder(
        *("sft", "--run-dir", run, "--model.path", model, "--data.path", data),
        *("--data.seq-length", 256, "--train.global-batch-size", 16, "--train.epochs", 20),
        *("--optim.lr", 1e-2, "--checkpoint.export-hf", "true"),
    )
    exported = next((run / "hf").iterdir())
    # a conversion of the checkpoint gets the same
    kept = next((run / "checkpoints").glob("step_*")) / "hf"
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        assert (kept / name).read_bytes() == (exported / name).read_bytes()
    questions = [{"question": f"What is {a} + 9?", "answer": f"#### {a + 9}"} for a in range(8)]
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in questions)
    )
    megaladder(
        *("eval", "--model", exported, "--benchmark", "gsm8k", "--data-dir", tmp_path / "data"),
        *("--out", out, "--n", 2, "--max-tokens", 64),
        *("--rollout.cpu-kv-cache-gib", 1, "--rollout.max-model-len", 512),
    )
    journal = next(out.rglob("journal.jsonl"))
    samples = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(samples) == 16
    assert {sample["finish_reason"] for sample in samples} == {"stop"}
    assert {sample["response_ids"][-1] for sample in samples} == {END_OF_TURN}
    summary = json.loads((journal.parent / "summary.json").read_text())
    assert summary["counts"]["truncated"] == 0
