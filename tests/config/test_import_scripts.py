"""import-config on shell scripts that start TRL, LLaMA-Factory and axolotl by flags, in the forms
that their examples and documentation show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megaladder.cli import main

MODEL = "--model_name_or_path models/m"
TRL = f"{MODEL} --dataset_name rows.jsonl --learning_rate 2.0e-5 --output_dir out"
FACTORY = f"--stage sft --do_train {MODEL} --finetuning_type full --dataset_dir data"
# script → what its run.yaml holds
SCRIPTS: dict[str, dict[str, Any]] = {
    f"trl sft {TRL} --packing --eos_token '<|im_end|>' --num_train_epochs 1 2>&1 | tee log": {
        "optim.lr": 2e-5,
        "data.packing": True,
        "train.epochs": 1,
        "run_dir": "out",
    },
    "export LR=5e-6\nN=4\n"
    "CUDA_VISIBLE_DEVICES=0,1 accelerate launch --config_file zero3.yaml --num_processes $((N * 2))"
    f" \\\n  trl/scripts/sft.py {MODEL} \\\n  --learning-rate=$LR --bf16=True"
    ' --per_device_train_batch_size 2 --dataset_name rows.jsonl --output_dir out "$@"': {
        "optim.lr": 5e-6,
        "train.precision": "bf16",
        "parallel.ranks": 8,
        "train.global_batch_size": 16,
    },
    f"python examples/scripts/grpo.py {TRL} --use_peft --lora_target_modules 'q_proj', 'v_proj'"
    " --per_device_train_batch_size 8": {"rollout.n": 8, "lora.targets": ["q_proj", "v_proj"]},
    f"set -x\nllamafactory-cli train {FACTORY} --dataset a,b --template qwen --cutoff_len 512"
    " --learning_rate 1e-4 --no_packing --output_dir saves/x > log.txt": {
        "optim.lr": 1e-4,
        "data.seq_length": 512,
        "data.path": ["data/a.json", "data/b.json"],
        "run_dir": "saves/x",
    },
    "llamafactory-cli train configs/a.yaml learning_rate=3e-5": {
        "optim.lr": 3e-5,
        "data.seq_length": 256,
    },
    "axolotl train configs/b.yaml --micro-batch-size 4": {
        "train.micro_batch_size": 4,
        "data.seq_length": 128,
    },
}
REFUSED = {
    "swift sft --model m --train_type lora": "swift sft: a command of ms-swift",
    "swift rlhf --rlhf_type grpo --model m": "swift rlhf: a command of ms-swift",
    f"trl dpo {TRL}": "trl dpo: not built here; fix: trl sft and trl grpo are",
    "llamafactory-cli train away.yaml": "reads away.yaml, which is not there; fix: go to the folder",
    f"trl sft {TRL}\ntrl sft {TRL}": "expected one training, found 2 (trl sft, trl sft)",
    f"trl sft $EXTRA {TRL}": "$EXTRA: expected --key value, key=value or a YAML file",
    "python prepare.py --local_dir data": "found none; fix: the script that starts the training",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout whose scripts are not at its top, as in the projects."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "scripts").mkdir()
    factory = {"stage": "sft", "model_name_or_path": "m", "dataset": "d", "cutoff_len": 256}
    axolotl = {"base_model": "m", "sequence_len": 128, "datasets": [{"path": "rows.jsonl"}]}
    (tmp_path / "configs" / "a.yaml").write_text(yaml.safe_dump(factory | {"learning_rate": 1e-5}))
    (tmp_path / "configs" / "b.yaml").write_text(yaml.safe_dump(axolotl))
    return tmp_path / "scripts"


def value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_read_like_the_keys_of_a_file(folder, script) -> None:
    (folder / "run.sh").write_text(f"#!/bin/bash\n{script}\n")
    out = folder / "run.yaml"
    assert main(["import-config", str(folder / "run.sh"), "--out", str(out)]) == 0
    written = yaml.safe_load(out.read_text())
    assert {key: value(written, key) for key in SCRIPTS[script]} == SCRIPTS[script]


@pytest.mark.parametrize("script", REFUSED)
def test_what_is_not_read_is_refused_by_its_name(folder, script, capsys) -> None:
    (folder / "run.sh").write_text(f"{script}\n")
    assert main(["import-config", str(folder / "run.sh")]) == 2
    assert REFUSED[script] in capsys.readouterr().err
