"""Slips that people make, and the next step that each message names: status 2, one message, a
`fix:` with a verb, key, file or flag in it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from megaladder.cli import VERBS, main

M, D = ["--model.path", "m"], ["--data.path", "d.jsonl"]
RUN = [*M, *D]
# what is typed → what the message has to lead to
SLIPS: tuple[tuple[Sequence[str], str], ...] = (
    # verbs
    (["train", "run.yaml"], "megaladder sft run.yaml"),
    (["finetune"], "megaladder grpo run.yaml"),
    (["generate"], "megaladder chat MODEL"),
    (["infer"], "megaladder chat MODEL"),
    (["evaluate"], "megaladder eval --model DIR --benchmark"),
    (["export"], "checkpoint.export_hf: true"),
    (["merge"], "megaladder convert megatron-to-hf"),
    (["upload"], "megaladder push RUN_DIR"),
    (["deploy"], "megaladder serve MODEL"),
    (["dpo"], "not built"),
    (["ppo"], "megaladder grpo run.yaml"),
    (["preprocess"], "megaladder data stats"),
    (["download"], "megaladder data get"),
    (["migrate"], "megaladder import-config FILE"),
    (["validate"], "megaladder check run.yaml"),
    (["sftt"], "did you mean 'sft'?"),
    (["run.yaml"], "megaladder sft run.yaml"),
    (["data", "stat", "x"], "did you mean 'data stats'?"),
    (["analyze", "pas-at-k"], "did you mean 'analyze pass-at-k'?"),
    (["SFT", "run.yaml"], "did you mean 'sft'?"),
    (["evals"], "did you mean 'eval'?"),
    (["benchmarks"], "megaladder eval --model DIR --benchmark"),
    (["recipes"], "megaladder examples"),
    (["models"], "megaladder chat MODEL"),
    (["lora"], "lora.rank: 16"),
    (["gguf"], "not built"),
    (["data", "download", "gsm8k"], "megaladder data get"),
    (["data", "tokenize"], "megaladder data stats"),
    (["data", "split"], "data.holdout"),
    (["convert", "export"], "megaladder convert megatron-to-hf"),
    (["convert", "hf2megatron"], "did you mean 'convert hf-to-megatron'?"),
    (["analyze", "everything"], "one of: analyze pass-at-k"),
    (["--verbose"], "log.txt has every line"),
    # files
    (["sft", "absent.yaml"], "no such file; fix: the path of a run.yaml"),
    (["sft", "."], "is a folder, expected a YAML file; fix:"),
    (["sft", "broken.yaml"], "broken.yaml:2: not valid YAML"),
    (["sft", "twice.yaml"], "twice.yaml:2: key 'run_dir' stands in line 1 already; fix: keep one"),
    (
        ["sft", "empty.yaml"],
        "is empty, expected keys such as `model:` and `data:`; fix: `megaladder examples`",
    ),
    (["sft", "list.yaml"], "expected a mapping"),
    (["sft", "grpo.yaml"], "is a file for `megaladder grpo`; fix: megaladder grpo grpo.yaml"),
    (["grpo", "sft.yaml"], "is a file for `megaladder sft`; fix: megaladder sft sft.yaml"),
    (["sft", "my grpo.yaml"], "fix: megaladder grpo 'my grpo.yaml'"),
    (["my grpo.yaml"], "fix: megaladder sft 'my grpo.yaml'"),
    (["chat", "my adapter"], "--adapter 'my adapter' --out DIR"),
    (["sft", "trl.yaml"], "megaladder import-config trl.yaml --out run.yaml"),
    (["sft", "recipe.yaml"], "megaladder data select FILE --recipe recipe.yaml"),
    (["sft", "base.yaml"], "base ../nowhere.yaml: no such file"),
    (["sft", "d.jsonl"], "is data; fix: data.path: d.jsonl in a run.yaml"),
    (["sft", "verl.sh"], "megaladder import-config verl.sh --out run.yaml"),
    (["sft", "model"], "fix: model.path: model in a run.yaml"),
    (["sft", "run"], "run/config.yaml goes on with it"),
    (["sft", "m.gguf"], "holds weights; fix: model.path: FOLDER"),
    (["sft", "run.toml"], "the same keys as YAML or JSON"),
    (["sft", "--config", "sft.yaml"], "the file has no flag; fix: sft.yaml right after the verb"),
    (["sft", "-c", "sft.yaml"], "the file has no flag; fix: sft.yaml right after the verb"),
    (["sft", "sft.yaml", "base.yaml"], "`base: base.yaml` on top of sft.yaml"),
    # keys in the manner of other programs
    (["sft", "sft.yaml", "optim.lr=1e-5"], "fix: --optim.lr 1e-5"),
    (["sft", "optim.lr=1e-5"], "fix: --optim.lr 1e-5"),
    (["grpo", "actor_rollout_ref.rollout.n=8"], "run.yaml first, keys as flags"),
    (["sft", *RUN, "-optim.lr", "1e-5"], "has one dash; fix: --optim.lr"),
    (["sft", *RUN, "--gpus", "8"], "here it is parallel.ranks"),
    (["sft", *RUN, "--dry-run"], "megaladder check run.yaml"),
    (["sft", *RUN, "--optim", "adamw"], "optim is a section: a key of it, such as --optim."),
    (["sft", *RUN, "--lora", "true"], "lora is a section: a key of it, such as --lora.rank"),
    # keys
    (["sft", *RUN, "--optim.lrr", "1"], "did you mean '--optim.lr'?"),
    (["sft", *RUN, "--lr", "1"], "did you mean '--optim.lr'?"),
    (["sft", *RUN, "--learning_rate", "1"], "here it is optim.lr"),
    (["sft", *RUN, "--rollout.n", "4"], "only `megaladder grpo`"),
    (["sft", "typo.yaml"], "typo.yaml:3: unknown key 'optim.learningrate'; fix:"),
    (["sft", "section.yaml"], "optim is a section, found 3; fix: keys below it"),
    (["sft", "checkpointing.yaml"], "here it is train.recompute"),
    # values
    (["sft", "words.yaml"], "optim.lr: "),
    (["sft", *RUN, "--optim.lr", "fast"], "`megaladder sft --help` explains each"),
    (["sft", *RUN, "--train.epochs"], "`megaladder sft --help` explains each"),
    (["sft", *RUN, "--optim.schedule", "cosin"], "`megaladder sft --help` explains each"),
    (["sft", *RUN, "--optim.min_lr", "1"], "fix: min_lr ≤ lr"),
    (["sft", *RUN, "--parallel.vpp", "2"], "parallel.vpp 2 needs pipeline stages"),
    (["sft", *RUN, "--train.eval_every", "5"], "needs data.holdout; fix: data.holdout"),
    (["sft", *RUN, "--data.holdout", "0.9"], "fix: a share in (0, 0.5]"),
    (["sft", *RUN, "--data.packing", "maybe"], "fix:"),
    (["grpo", *RUN, "--rollout.n", "1"], "fix: rollout.n ≥ 2"),
    (["grpo", *RUN, "--rollout.temperature", "0"], "fix: a temperature above 0"),
    (["grpo", *RUN, "--rollout.max_tokens", "4096"], "fix: a larger seq_length"),
    (["grpo", "term.yaml"], "fix: {function: path.py:function, weight: …}"),
    (["grpo", "terms.yaml"], "fix: one of correctness, format"),
    (["grpo", *RUN, "--rollout.servers", "node7"], "fix: http://HOST:PORT"),
    (["sft", *D], "model.path is empty; fix: set model.path"),
    (["sft", *M], "data.path is empty; fix: set data.path"),
    (["sft", "--model.path", "$NO_SUCH_THING/m", *D], "fix: export NO_SUCH_THING=…"),
    # evaluation, models, data
    (["eval", "--model", "m"], "--benchmark aime24,math500 (--benchmark list prints the names)"),
    (["eval", "--benchmark", "gsm8k"], "fix: --model DIR"),
    (["eval", "--model", "m", "--benchmark", "gsm9k"], "did you mean 'gsm8k';"),
    (["eval", "--model", "m", "--benchmark", "x", "--registry", "typo.yaml"], "fix: benchmarks:"),
    (["chat", "nowhere"], "fix: a Hugging Face folder or a run folder"),
    (["chat", "."], ", or a folder that sft or grpo wrote"),
    (["chat", "m.gguf"], "is a file, expected a Hugging Face folder; fix: the Hugging Face folder"),
    (["chat", "model/m.safetensors"], "fix: its folder model"),
    (["chat", "adapter"], "megaladder convert merge --hf MODEL --adapter adapter --out DIR"),
    (["serve", "gguf"], "has a GGUF file, which is not read; fix:"),
    (["chat", "run/checkpoints/step_2"], "megaladder convert megatron-to-hf --megatron run/check"),
    (["sft", "--model.path", "adapter", *D], "lora.start adapter"),
    (["sft", "--model.path", "qwen", *D], "found none of these files; fix: model.tokenizer"),
    (["sft", "--model.path", "m.gguf", *D], "is a file, expected a Hugging Face folder"),
    (["push", "nowhere", "--to", "x"], "fix: a Hugging Face folder or a run folder"),
    (["data", "stats", "absent.jsonl"], "fix: the path (it counts from"),
    (["data", "stats", "zero.jsonl"], "fix: give a file with rows"),
    (["data", "stats", "odd.csv"], "--fields '{question: frage, answer: loesung}'"),
    (["data", "stats", "owner/name"], "fix: the path, --revision"),
    (["data", "stats", "d.jsonl", "--tokenizer", "nowhere"], "fix: --tokenizer"),
    (["data", "stats", "table.xlsx"], "fix: convert or rename it"),
    (["data", "get", "gsm9k"], "did you mean 'gsm8k';"),
    (["data", "make", "sudoku"], "megaladder data make"),
    (["grade", "--input", "absent.jsonl", "--output", "o"], "fix:"),
    (["report", "nowhere"], "fix:"),
    (["import-config", "sft.yaml"], "megaladder check sft.yaml"),
    (["examples", "nowhere"], "megaladder examples"),
    (
        ["examples", "sft_arithmetic_cpu"],
        "fix: megaladder examples configs/sft_arithmetic_cpu.yaml",
    ),
    (["data", "stats", "-"], "fix: write them to a file first"),
    (["data", "stats", "packed.jsonl"], "found a gzip archive (.gz); fix: the ending"),
    (["data", "stats", "noise.jsonl"], "found bytes that are none"),
    (["data", "stats", "batch.jsonl"], "{question: COLUMN, answer: COLUMN}"),
    (["report", "two.jsonl"], "fix: run folders, evaluation folders"),
    (["sft", "--model.path", "no/such/model", *D], "no such folder in /"),
    (["sft", "--model.path", "trained/checkpoints", *D], "fix: its export trained/hf/step_2"),
)


QWEN = {
    "model_type": "qwen3",
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "vocab_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2),
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder in which all this is typed."""
    files = {
        "broken.yaml": "run_dir: [a\noptim: {lr: 1\n",
        "twice.yaml": "run_dir: a\nrun_dir: b\n",
        "empty.yaml": "",
        "list.yaml": "- a\n- b\n",
        "grpo.yaml": "model: {path: m}\ndata: {path: d}\nrollout: {n: 4}\ngrpo: {preset: dapo}\n",
        "sft.yaml": "model: {path: m}\ndata: {path: d, holdout: 5}\ntrain: {global_batch_size: 8}\n",
        "trl.yaml": "model_name_or_path: m\nlearning_rate: 1e-5\nnum_train_epochs: 3\n",
        "recipe.yaml": "name: r\nstages: [{sample: {n: 3}}]\n",
        "base.yaml": "base: ../nowhere.yaml\n",
        "typo.yaml": "model: {path: m}\noptim:\n  learningrate: 1\n",
        "section.yaml": "optim: 3\n",
        "checkpointing.yaml": "gradient_checkpointing: true\n",
        "term.yaml": "reward: {terms: [{name: 'mine.py:score', weight: 2}]}\n",
        "terms.yaml": "reward: {terms: [corectness]}\n",
        "words.yaml": "optim: {lr: quick}\n",
        "zero.jsonl": "",
        "odd.csv": "frage,loesung\n1+1?,2\n",
        "verl.sh": "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo\n",
        "run.toml": "[model]\n",
        "m.gguf": "GGUF",
        "model/config.json": "{}",
        "qwen/config.json": json.dumps(QWEN),
        "model/m.safetensors": "",
        "run/config.yaml": "run_dir: run\n",
        "run/checkpoints/step_2/COMMITTED": "",
        "adapter/adapter_config.json": "{}",
        "gguf/m.gguf": "GGUF",
        "table.xlsx": "x",
        "my grpo.yaml": "data: {path: d}\nrollout: {n: 4}\ngrpo: {preset: dapo}\n",
        "my adapter/adapter_config.json": "{}",
        "two.jsonl": "{}\n{}\n",
        "noise.jsonl": "\x00\x01\x02\x03",
        "batch.jsonl": '{"custom_id": "1", "method": "POST", "body": {}}\n',
        "trained/config.yaml": "run_dir: trained\n",
        "trained/checkpoints/step_2/COMMITTED": "",
        "trained/hf/step_2/config.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "1?", "answer": "1"}) + "\n")
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(b"{}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH_THING", raising=False)
    return tmp_path


def test_there_are_enough_of_them() -> None:
    assert len(SLIPS) >= 40 and len({tuple(typed) for typed, _ in SLIPS}) == len(SLIPS)


@pytest.mark.parametrize(
    ("typed", "leads_to"), SLIPS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_each_slip_names_the_next_step(typed, leads_to, here, capsys) -> None:
    try:
        status = main(list(typed))
    except SystemExit as end:  # the parser of flags ends by itself
        status = end.code
    shown = capsys.readouterr().err
    assert status == 2
    assert "fix:" in shown and leads_to in shown
    assert "Traceback" not in shown


def test_flags_that_messages_name_are_taken_as_they_are_written(here, capsys) -> None:
    words = ["data", "stats", "odd.csv", "--fields", "{question: frage, answer: loesung}"]
    assert main(words) == 0
    assert "question-answer" in capsys.readouterr().out


# verbs that write where they are told; `ending.ODD_PLACES` has the words
WRITERS: tuple[Sequence[str], ...] = (
    ("data", "make", "arithmetic", "--rows", "2", "--out"),
    ("examples", "configs/sft_arithmetic_cpu.yaml", "--out"),
    ("data", "score", "d.jsonl", "--out"),
    ("data", "stats", "d.jsonl", "--json"),
    ("study", "limo", "--out"),
)


@pytest.mark.parametrize("words", WRITERS, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("zero.jsonl/below.jsonl", "a file stands where a folder is needed"),
        ("loop/below.jsonl", "(a file stands where a folder is needed|a link that leads back to)"),
        (f"{'a' * 300}.jsonl", "the name is too long for this file system"),
    ],
    ids=["below a file", "a link to itself", "a name too long"],
)
def test_a_place_that_cannot_be_written_to_names_its_flag(words, place, why, here, capsys) -> None:
    (here / "loop").symlink_to("loop")
    assert main([*words, place]) == 2
    shown = capsys.readouterr().err
    assert re.search(f"{place}: {why}.*; fix: another {words[-1]}", shown)


def test_a_missing_file_that_nobody_typed_is_a_bug_with_its_traceback(here, monkeypatch) -> None:
    def fails(_path: str) -> None:
        (here / "own").read_text()

    monkeypatch.setattr("megaladder.curate.stats.open_source", fails)
    with pytest.raises(FileNotFoundError):
        main(["data", "stats", "d.jsonl"])


def test_help_stands_before_the_verb_too(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["help", "grade"])
    assert "usage: megaladder grade" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_help_of_every_verb_ends_with_a_line_to_type(verb, capsys) -> None:
    with pytest.raises(SystemExit):
        main([*verb.name.split(" "), "--help"])
    shown = capsys.readouterr().out
    assert f"example: megaladder {verb.name}" in shown
