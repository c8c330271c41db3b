"""import-config on configurations that other projects publish (tests/config/foreign/README.md), and
the hints that their keys get in a file of ours."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from megaladder.cli import main
from megaladder.config.base import leaf_keys
from megaladder.config.foreign.convert import convert
from megaladder.config.foreign.meanings import recognise, trainers
from megaladder.config.foreign.read import read_foreign
from megaladder.config.foreign.work import CONFIGS
from megaladder.config.resolve.elsewhere import meant_elsewhere, other_kind
from megaladder.config.sft import SftConfig
from megaladder.config.strict_yaml import YamlFile
from megaladder.errors import ConfigError

BEGIN, END = "<!-- made by tests/config/test_import_config.py -->", "<!-- until here -->"
FOREIGN = Path(__file__).parent / "foreign"
# file → GPUs, the keys whose values another person would check first
IMPORTED: dict[str, tuple[int | None, dict[str, object]]] = {
    "trl_sft_open_r1.yaml": (
        8,
        {
            "optim.lr": 1e-5,
            "optim.min_lr": 1e-6,
            "optim.warmup_ratio": 0.05,
            "optim.weight_decay": 0.0,
            "train.epochs": 15,
            "train.global_batch_size": 16,
            "train.recompute": "full",
            "data.seq_length": 32768,
            "checkpoint.keep_last": 1,
        },
    ),
    "trl_grpo_open_r1.yaml": (
        None,
        {
            "parallel.ranks": 7,
            "grpo.prompts_per_step": 256,
            "rollout.n": 7,
            "rollout.max_tokens": 1024,
            "data.seq_length": 1536,
            "grpo.kl": "none",
            "grpo.clip_high": 0.2,
            "optim.lr": 2e-5,
        },
    ),
    "llamafactory_llama3_full_sft.yaml": (
        4,
        {
            "data.path": ["data/identity.json", "data/alpaca_en_demo.json"],
            "train.global_batch_size": 8,
            "train.epochs": 3.0,
            "optim.lr": 1e-5,
            "checkpoint.every": 500,
            "model.trust_remote_code": True,
        },
    ),
    "llamafactory_qwen3_full_sft.yaml": (
        8,
        {"data.seq_length": 131072, "optim.clip_grad": 1e-3, "optim.weight_decay": 0.03},
    ),
    "axolotl_llama3_fft_8b.yaml": (
        8,
        {
            "train.global_batch_size": 64,
            "data.path": "tatsu-lab/alpaca",
            "data.holdout": 0.05,
            "optim.warmup_steps": 100,
            "data.packing": True,
        },
    ),
    "axolotl_llama3_fft_8b_liger_fsdp.yaml": (
        8,
        {"train.micro_batch_size": 2, "train.global_batch_size": 64, "data.split": "train"},
    ),
    "verl_grpo_qwen2_7b_math.sh": (
        None,
        {
            "data.path": ["$HOME/data/gsm8k/train.parquet", "$HOME/data/math/train.parquet"],
            "grpo.prompts_per_step": 1024,
            "grpo.mini_batches": 4,
            "grpo.kl": "k3",
            "grpo.kl_coef": 0.001,
            "grpo.dual_clip": 3.0,
            "rollout.n": 5,
            "rollout.tp": 2,
            "parallel.ranks": 8,
            "log.project": "verl_grpo_example_gsm8k_math",
        },
    ),
    "verl_dapo_qwen2_5_32b.sh": (
        None,
        {
            "model.path": "${HOME}/verl/models/Qwen2.5-32B",
            "run_dir": "${HOME}/verl/ckpts/DAPO/DAPO-Qwen2.5-32B",
            "parallel.ranks": 128,
            "grpo.mini_batches": 16,
            "grpo.clip_high": 0.28,
            "grpo.dynamic_sampling": "accuracy",
            "grpo.max_resamples": 9,
            "grpo.kl": "none",
            "rollout.max_tokens": 20480,
            "rollout.top_k": 0,
            "data.seq_length": 22528,
            "optim.warmup_steps": 10,
            "reward.terms": ["correctness", {"name": "overlong", "tokens": 4096, "weight": 1.0}],
        },
    ),
    "verl_sft_trainer.yaml": (
        None,
        {
            "model.path": "~/models/gemma-1.1-7b-it",
            "run_dir": "checkpoints/gsm8k-sft/test",
            "train.seed": 1,
            "train.global_batch_size": 256,
            "optim.betas": [0.9, 0.95],
            "checkpoint.every": 0,
        },
    ),
}


@pytest.mark.parametrize("name", IMPORTED)
def test_published_files_become_files_that_check_takes(name: str, tmp_path, capsys) -> None:
    gpus, expected = IMPORTED[name]
    out = tmp_path / "run.yaml"
    more = ["--gpus", str(gpus)] if gpus else []
    assert main(["import-config", str(FOREIGN / name), "--out", str(out), *more]) == 0
    shown = capsys.readouterr().out
    values = yaml.safe_load(out.read_text())
    for key, value in expected.items():
        section, _, leaf = key.rpartition(".")
        assert (values[section] if section else values)[leaf] == value, key
    assert f"next: megaladder check {out}" in shown and "mapped" in shown
    assert main(["check", str(out)]) == 0
    assert main(["import-config", str(FOREIGN / name), "--out", str(out)]) == 2  # there already
    assert "fix: --force" in capsys.readouterr().err


def test_every_file_of_the_folder_is_imported_or_refused_with_the_reason(capsys) -> None:
    files = {path.name for path in FOREIGN.iterdir()} - {"README.md"}
    assert files - IMPORTED.keys() == {"axolotl_qwen3_lora.yaml"}
    assert main(["import-config", str(FOREIGN / "axolotl_qwen3_lora.yaml")]) == 2
    shown = capsys.readouterr().err
    assert "load_in_4bit true" in shown and "fix: load_in_4bit=null after the file name" in shown


def test_a_published_file_of_adapters_is_imported_without_its_quantisation(tmp_path) -> None:
    out = tmp_path / "run.yaml"
    own = ["load_in_4bit=null", "lora_target_linear=true", "--gpus", "1", "--out", str(out)]
    assert main(["import-config", str(FOREIGN / "axolotl_qwen3_lora.yaml"), *own]) == 0
    assert yaml.safe_load(out.read_text())["lora"] == {"rank": 32, "alpha": 16.0}
    assert main(["check", str(out)]) == 0


def test_every_target_of_the_table_is_a_key_that_takes_the_values() -> None:
    """A renamed key of ours would otherwise leave a hint that leads nowhere."""
    known = {key for config in CONFIGS.values() for key in leaf_keys(config)}
    for trainer in trainers().values():
        for key, meaning in trainer.keys.items():
            says = (meaning.to, meaning.part, meaning.neutral, meaning.refuse, meaning.stop)
            assert sum(one is not None for one in says) == 1, f"{trainer.name} {key}"
            assert meaning.to is None or meaning.to in known, f"{trainer.name} {key}"
            assert meaning.part is None or meaning.hint, f"{trainer.name} {key} has no hint"


def published_table() -> str:
    """What becomes of each published file: the table of docs/import_config.md."""
    lines = ["| file | verb | mapped | default | no effect | refused | to do |", "|---" * 7 + "|"]
    reasons = []
    for path in sorted(FOREIGN.iterdir()):
        if path.name == "README.md":
            continue
        flat = read_foreign(str(path))
        trainer = trainers()[recognise(flat) or ""]
        gpus, _ = IMPORTED.get(path.name, (None, {}))
        try:
            work = convert(trainer, flat, gpus)
        except ConfigError as error:
            lines.append(f"| `{path.name}` | refused as a whole | | | | | |")
            reasons += [
                f"- `{path.name}`: {line.partition('; fix:')[0]}"
                for line in str(error).splitlines()
            ]
            continue
        counts = Counter(one.verdict for one in work.findings)
        cells = [counts[name] for name in ("mapped", "default", "no effect", "refused", "to do")]
        lines.append(f"| `{path.name}` | {work.method} | {' | '.join(map(str, cells))} |")
        reasons += [
            f"- `{path.name}`: `{one.key}` {one.text}"
            for one in work.findings
            if one.verdict == "refused"
        ]
    return "\n".join([*lines, "", "Refused, and why:", "", *reasons]) + "\n"


def test_the_page_says_what_becomes_of_each_published_file() -> None:
    """Not by hand: the page holds what the function above makes."""
    page = (Path(__file__).parents[2] / "docs" / "import_config.md").read_text("utf-8")
    _, _, rest = page.partition(f"{BEGIN}\n")
    assert rest.partition(END)[0] == published_table(), "put published_table() between the marks"


def test_what_is_not_carried_is_listed_with_the_reason() -> None:
    flat = {
        "model_name_or_path": "m",
        "dataset_name": "d.jsonl",
        "optim": "adafactor",
        "lr_scheduler_type": "polynomial",
        "mystery": 3,
        "fp16": False,
        "reward_funcs": ["accuracy", "code_format"],
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "beta": 0.04,
    }
    work = convert(trainers()["trl"], flat, gpus=1)
    refused = {one.key: one.text for one in work.findings if one.verdict == "refused"}
    assert set(refused) == {"optim", "lr_scheduler_type", "mystery", "reward_funcs code_format"}
    assert "linear, cosine" in refused["lr_scheduler_type"]
    assert work.ours["reward.terms"] == ["correctness"] and work.ours["grpo.kl_coef"] == 0.04
    assert work.ours["grpo.prompts_per_step"] == 2


@pytest.mark.parametrize(
    ("tool", "keys", "lora"),
    [
        ("trl", {"lora_r": 8}, {}),
        ("trl", {"use_peft": False, "lora_r": 8}, {}),
        (
            "trl",
            {"use_peft": True},
            {"lora.rank": 16, "lora.alpha": 32.0, "lora.targets": ["q_proj", "v_proj"]},
        ),
        ("llamafactory", {"finetuning_type": "full", "dataset": "a"}, {}),
        ("llamafactory", {"dataset": "a", "lora_rank": 4}, {"lora.rank": 4, "lora.alpha": 8.0}),
        ("axolotl", {"adapter": "lora", "lora_model_dir": "mine"}, {"lora.start": "mine"}),
        (
            "axolotl",
            {"adapter": "lora", "lora_target_linear": True, "peft_use_rslora": True},
            {"lora.rank": 8, "lora.alpha": 8.0, "lora.rslora": True},
        ),
        ("verl", {"model.lora_rank": 0, "model.lora_alpha": 16}, {}),
        (
            "verl",
            {"model.lora_rank": 32, "model.target_modules": "q_proj, lm_head"},
            {"lora.rank": 32, "lora.alpha": 16.0, "lora.targets": ["q_proj"]},
        ),
    ],
)
def test_adapters_are_those_of_the_file(tool: str, keys: dict, lora: dict) -> None:
    work = convert(trainers()[tool], keys, gpus=8)
    assert {key: value for key, value in work.ours.items() if key.startswith("lora.")} == lora
    refused = [one.text for one in work.findings if one.verdict == "refused"]
    assert refused == (["lm_head: not in lora.targets"] if "model.target_modules" in keys else [])


def test_other_adapters_are_refused() -> None:
    for keys, why in (
        ({"finetuning_type": "freeze", "dataset": "a"}, "freeze: of adapters LoRA is built"),
        (
            {"finetuning_type": "lora", "dataset": "a", "lora_target": "wqkv"},
            "none of lora.targets",
        ),
        ({"finetuning_type": "lora", "dataset": "a", "lora_target": 7}, "none of lora.targets"),
        ({"use_dora": True}, "DoRA is not"),
    ):
        with pytest.raises(ConfigError, match=why):
            convert(trainers()["llamafactory"], keys, gpus=8)


def test_overrides_scripts_and_interpolation(tmp_path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(
        "A=${A:-3}\nB=$((A * 2 + (1 + 1)))\nX='a b'\nfoo $(rm -rf /nowhere) trainer.nnodes=$B \\\n"
        "  trainer.n_gpus_per_node=$A data.train_files='[x.parquet, y.parquet]' "
        'trainer.project_name="$X" trainer.total_epochs=$(seq 3)\n'
    )
    flat = read_foreign(str(path), ["+trainer.nnodes=2", "data.seed=None", "optim.lr=1e-6"])
    assert flat["trainer.nnodes"] == 2 and flat["trainer.n_gpus_per_node"] == 3
    assert flat["data.train_files"] == ["x.parquet", "y.parquet"]
    assert flat["trainer.project_name"] == "a b" and flat["optim.lr"] == 1e-6
    assert flat["data.seed"] is None and str(flat["trainer.total_epochs"]).startswith("$(seq")
    assert recognise(flat) == "verl"
    with pytest.raises(ConfigError, match="expected key=value; fix: "):
        read_foreign(str(path), ["nnodes"])
    path.write_text("echo hello\n")
    with pytest.raises(ConfigError, match="expected a script with overrides"):
        read_foreign(str(path))


def test_llamafactory_sets_are_found_in_their_own_list(tmp_path) -> None:
    info = {"mine": {"file_name": "m.json", "columns": {"prompt": "ask", "response": "say"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    flat = {"stage": "sft", "dataset": "mine", "dataset_dir": str(tmp_path), "cutoff_len": 9}
    work = convert(trainers()["llamafactory"], flat, None)
    assert work.ours["data.path"] == str(tmp_path / "m.json")
    assert work.ours["data.fields"] == {"instruction": "ask", "output": "say"}


def test_files_that_are_none_of_these(tmp_path, capsys) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("colour: blue\n")
    assert main(["import-config", str(path)]) == 2
    assert "has no keys of TRL" in (shown := capsys.readouterr().err) and "fix: --source" in shown
    ppo = ["actor_rollout_ref.model.path=m", "data.train_files=d.parquet"]
    assert main(["import-config", str(path), *ppo, "actor_rollout_ref.rollout.n=4"]) == 2
    assert "adv_estimator gae" in (shown := capsys.readouterr().err) and "fix: grpo" in shown


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "here it is optim.lr"),
        ("num_train_epochs", "here it is train.epochs"),
        ("model_name_or_path", "here it is model.path"),
        ("gradient_checkpointing", "here it is train.recompute"),
        ("optim.learning_rate", "here it is optim.lr"),
        ("per_device_train_batch_size", "here it is train.global_batch_size"),
        ("num_generations", "here it is rollout.n, and only `megaladder grpo`"),
        ("deepspeed", "leave it out: states are spread by the distributed optimizer"),
        ("push_to_hub", "megaladder push"),
        ("lora_r", "here it is lora.rank"),
    ],
)
def test_hints_at_keys_of_other_trainers(key: str, hint: str) -> None:
    assert hint in str(meant_elsewhere(key, SftConfig))


def findings(tool: str, keys: dict, gpus: int | None = 8) -> tuple[dict, dict[str, str]]:
    """Our keys, and the verdict on each of the file's."""
    work = convert(trainers()[tool], keys, gpus)
    return work.ours, {one.key: one.verdict for one in work.findings}


VERL = {"actor_rollout_ref.model.path": "m", "data.train_files": "d.parquet"}
GRPO = {**VERL, "algorithm.adv_estimator": "grpo", "actor_rollout_ref.rollout.n": 4}


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [
        ("actor_rollout_ref.model.lora.rank", 256, {"lora.rank": 256}),
        ("actor_rollout_ref.actor.megatron.expert_model_parallel_size", 8, {"parallel.ep": 8}),
        ("actor_rollout_ref.ref.model.path", "other", {"grpo.reference": "other"}),
        ("actor_rollout_ref.model.override_config.rope_scaling.type", "yarn", None),
        ("actor_rollout_ref.rollout.do_sample", False, None),
        ("actor_rollout_ref.rollout.do_sample", True, {}),
        ("actor_rollout_ref.rollout.unheard_of", 3, None),
        ("actor_rollout_ref.rollout.max_num_seqs", 256, {}),
        ("actor_rollout_ref.actor.fsdp_config.model_dtype", "bfloat16", None),
        ("trainer.critic_warmup", 5, None),
        ("trainer.critic_warmup", 0, {}),
        ("trainer.rejection_sample", True, None),
    ],
)
def test_a_section_hides_no_key_that_changes_the_run(key: str, value: object, ours) -> None:
    """Keys of volcengine/verl's _generated_ppo_trainer.yaml, examples/grpo_trainer and
    SkyworkAI/Skywork-OR1's or1_scripts: None = refused by name, {} = without effect."""
    found, verdicts = findings("verl", {**GRPO, key: value})
    if ours is None:
        assert verdicts[key] == "refused"
    elif ours:
        assert ours.items() <= found.items()
    else:
        assert verdicts[key] == "no effect"


def test_a_penalty_without_a_coefficient_has_that_of_the_other_tool() -> None:
    """volcengine/verl, verl/trainer/config/actor/actor.yaml: kl_loss_coef 0.001."""
    ours, _ = findings("verl", {**GRPO, "actor_rollout_ref.actor.use_kl_loss": True})
    assert ours["grpo.kl"] == "k3" and ours["grpo.kl_coef"] == 0.001


def test_columns_that_hold_objects_are_followed_to_the_text() -> None:
    """volcengine/verl, examples/sft/gsm8k/run_qwen_05_peft.sh."""
    keys = {"data.train_files": "d.parquet", "model.partial_pretrain": "m"}
    keys |= {"data.prompt_key": "extra_info", "data.prompt_dict_keys": ["question"]}
    keys |= {"data.response_key": "extra_info", "data.response_dict_keys": ["answer"]}
    ours, _ = findings("verl", keys)
    assert ours["data.fields"] == {"prompt": "extra_info.question", "answer": "extra_info.answer"}


@pytest.mark.parametrize(
    ("one", "ours", "refused"),
    [
        ({"path": "json", "data_files": "a.jsonl"}, {"data.path": "a.jsonl"}, []),
        ({"data_files": ["a.jsonl"], "path": "json"}, {"data.path": "a.jsonl"}, []),
        ({"path": "o/s", "revision": "0" * 40}, {"data.revision": "0" * 40}, []),
        ({"path": "a.jsonl", "type": "alpaca"}, {}, ["datasets.type"]),
        ({"path": "a.jsonl", "type": "completion"}, {}, ["datasets.type"]),
        ({"path": "a.jsonl", "type": "chat_template", "field_messages": "messages"}, {}, []),
        (
            {"path": "a.jsonl", "type": "chat_template", "field_messages": "talk"},
            {"data.fields": {"messages": "talk"}},
            [],
        ),
        ({"path": "a.jsonl", "train_on_eos": "all"}, {}, ["datasets.train_on_eos"]),
        ({"path": "a.jsonl", "roles_to_train": ["user"]}, {}, ["datasets.roles_to_train"]),
        ({"path": "a.jsonl", "roles": {"assistant": ["gpt", "model"]}}, {}, []),
        ({"path": "a.jsonl", "roles": {"assistant": ["bot"]}}, {}, ["datasets.roles"]),
        (
            {"path": "a.jsonl", "message_property_mappings": {"role": "from", "content": "value"}},
            {},
            [],
        ),
        (
            {"path": "a.jsonl", "message_property_mappings": {"role": "who", "content": "says"}},
            {},
            ["datasets.message_property_mappings"],
        ),
        ({"path": "a.jsonl", "shards": 10}, {}, ["datasets.shards"]),
    ],
)
def test_every_field_of_an_axolotl_set_is_used_or_refused(one, ours, refused) -> None:
    """Fields of axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas/datasets.py (SFTDataset)."""
    keys = {"base_model": "m", "datasets": [one], "learning_rate": 1e-5}
    found, verdicts = findings("axolotl", keys)
    assert ours.items() <= found.items()
    assert [key for key, verdict in verdicts.items() if verdict == "refused"] == refused
    assert found["optim.warmup_ratio"] == 0.03  # its own, where a file names no warmup


def test_axolotl_plugins_that_change_the_training_are_refused() -> None:
    """axolotl-ai-cloud/axolotl, examples/llama-3/diffusion/pretrain-1b.yaml."""
    harmless = "axolotl.integrations.liger.LigerPlugin"
    for plugins, verdict in (
        ([harmless], "no effect"),
        ([harmless, "axolotl.integrations.diffusion.DiffusionPlugin"], "refused"),
    ):
        keys = {"base_model": "m", "datasets": [{"path": "a.jsonl"}], "plugins": plugins}
        assert findings("axolotl", keys)[1]["plugins"] == verdict


def test_templates_of_other_tools_are_left_to_the_user() -> None:
    for tool, key in (("axolotl", "chat_template"), ("llamafactory", "template")):
        keys = {"base_model": "m", "dataset": "a", key: "llama3"}
        assert findings(tool, keys)[1]["chat_template"] == "to do"
        assert "chat_template" not in findings(tool, {**keys, key: "tokenizer_default"})[1]


@pytest.mark.parametrize(
    ("entry", "ours", "refused"),
    [
        (
            {"columns": {"prompt": "instruction", "query": "input", "response": "output"}},
            {"data.path": "DIR/m.json"},
            [],
        ),
        (
            {"hf_hub_url": "o/s", "subset": "math", "split": "train[:5%]"},
            {"data.path": "o/s", "data.config": "math", "data.split": "train"},
            ["m.split"],
        ),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "conversations", "tools": "functions"},
                "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human"},
            },
            {"data.fields": {"tools": "functions"}},
            [],
        ),
        (
            {"formatting": "sharegpt", "tags": {"assistant_tag": "bot"}},
            {},
            ["m.tags.assistant_tag"],
        ),
        ({"columns": {"images": "pictures"}}, {}, ["m.columns.images"]),
        ({"num_samples": 100}, {}, ["m.num_samples"]),
    ],
)
def test_every_entry_of_dataset_info_is_used_or_refused(entry, ours, refused, tmp_path) -> None:
    """Entries as in hiyouga/LLaMA-Factory, data/dataset_info.json and data/README.md."""
    (tmp_path / "dataset_info.json").write_text(json.dumps({"m": {"file_name": "m.json", **entry}}))
    flat = {"stage": "sft", "dataset": "m", "dataset_dir": str(tmp_path), "model": "x"}
    found, verdicts = findings("llamafactory", flat)
    expected = {key: _in(tmp_path, value) for key, value in ours.items()}
    assert expected.items() <= found.items()
    assert "data.fields" in ours or "data.fields" not in found
    assert [key for key, verdict in verdicts.items() if verdict == "refused"] == refused


def _in(folder: Path, value: object) -> object:
    return value.replace("DIR", str(folder)) if isinstance(value, str) else value


def test_sets_of_several_kinds_become_a_mixture_and_pairs_are_refused(tmp_path) -> None:
    info = {
        "a": {"file_name": "a.json"},
        "b": {"hf_hub_url": "o/s", "split": "train", "columns": {"prompt": "ask"}},
        "dpo": {"file_name": "d.json", "ranking": True},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    flat = {"stage": "sft", "dataset": "a,b", "dataset_dir": str(tmp_path), "model": "x"}
    assert findings("llamafactory", flat)[0]["data.mixture"] == [
        {"source": str(tmp_path / "a.json")},
        {"source": "o/s", "split": "train", "fields": {"instruction": "ask"}},
    ]
    with pytest.raises(ConfigError, match="ranking: true"):
        findings("llamafactory", {**flat, "dataset": "dpo"})


def test_rewards_and_their_weights_are_as_many() -> None:
    keys = {"model_name_or_path": "m", "dataset_name": "d.jsonl", "num_generations": 4}
    keys |= {"per_device_train_batch_size": 8, "reward_funcs": ["accuracy", "format"]}
    ours, verdicts = findings("trl", keys, 1)
    assert verdicts["reward_funcs format"] == "to do"  # open-r1's asks for more than rule think
    keys["reward_funcs"] = ["trl.rewards.accuracy_reward", "trl.rewards.think_format_reward"]
    keys["reward_weights"] = [1.0, 0.5]
    ours, _ = findings("trl", keys, 1)
    half = {"name": "format", "rule": "think", "weight": 0.5}
    assert ours["reward.terms"] == ["correctness", half]
    assert "data.seq_length" in ours and ours["data.seq_length"] == 512 + 256
    with pytest.raises(ConfigError, match="1 for 2 of reward_funcs"):
        findings("trl", {**keys, "reward_weights": [1.0]}, 1)


def test_scripts_with_quotes_over_lines_and_with_arguments(tmp_path) -> None:
    """hkust-nlp/simpleRL-reason, train_grpo_math_tune_ray.sh: a quoted JSON text before the keys;
    volcengine/verl, examples/sft/gsm8k: the folder is the script's second argument."""
    path = tmp_path / "run.sh"
    path.write_text(
        "NAME=run\nSUFFIX=\n# it's read\ncat <<X\nno one's keys\nX\n"
        "ray job submit --runtime-env-json='{\n  \"env\": {}\n}' -- python -m verl \\\n"
        "  data.train_files=d.parquet trainer.default_local_dir=out/$NAME$SUFFIX \\\n"
        "  actor_rollout_ref.rollout.response_length='${oc.select:data.x,512}'\n"
    )
    flat = read_foreign(str(path))
    assert flat["data.train_files"] == "d.parquet"
    assert flat["trainer.default_local_dir"] == "out/run"
    assert flat["actor_rollout_ref.rollout.response_length"] == 512
    path.write_text("out=$2\nrun data.train_files=d trainer.default_local_dir=$out\n")
    with pytest.raises(ConfigError, match=r"an argument of the script.*fix: trainer\.default"):
        findings("verl", read_foreign(str(path)))


@pytest.mark.parametrize(
    ("keys", "tool"),
    [
        ({"tuner_type": "lora", "learning_rate": 1e-4, "max_length": 9, "seed": 1}, "ms-swift"),
        ({"policy.model_name": "m", "grpo.num_prompts_per_step": 8}, "NeMo-RL"),
        ({"merge_method": "slerp", "base_model": "m"}, "mergekit"),
        ({"distributed_type": "FSDP", "num_processes": 8}, "accelerate"),
    ],
)
def test_files_of_tools_that_are_not_known_are_named(keys: dict, tool: str) -> None:
    with pytest.raises(ConfigError, match=f"a file of {tool}, whose keys are not known"):
        recognise(keys)


def test_a_key_of_another_tool_makes_a_run_file_of_ours_none_of_its_files() -> None:
    values = {"model": {"path": "m"}, "data": {"path": "d.jsonl"}, "optim": {"lr": 1e-5}}
    ours = YamlFile("run.yaml", {**values, "train_type": "lora"}, {})
    assert other_kind(ours, SftConfig) is None
    with pytest.raises(ConfigError, match="ms-swift"):
        other_kind(YamlFile("swift.yaml", {"train_type": "lora", "model": "m"}, {}), SftConfig)


def test_a_file_for_generation_trains_nothing() -> None:
    """volcengine/verl, verl/trainer/config/generation.yaml."""
    keys = {"data.path": "t.parquet", "data.n_samples": 5, "data.output_path": "o.parquet"}
    assert recognise(keys) == "verl"
    with pytest.raises(ConfigError, match="a file for generation"):
        findings("verl", keys)
