"""The command line as a process: exit statuses, messages on stderr without tracebacks, every verb's
help."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tiny_models import build_tiny_model

from megaladder.cli import VERBS, Verb, dispatch, find_verb, load, main
from megaladder.config.base import StrictModel, leaf_keys
from megaladder.errors import ConfigError, RunStopped


def megaladder(*args: str, **kwargs) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **kwargs.pop("env", {})}
    command = [sys.executable, "-m", "megaladder", *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment, check=False, **kwargs
    )


class Empty(StrictModel):
    """A verb of this test."""

    value: int = 1
    """A number."""


def raiser(error: BaseException):
    def run(config: Empty) -> int:
        raise error

    return run


@pytest.fixture
def verbs(monkeypatch):
    """Puts verbs of the test into the table: name → function."""

    def put(**functions) -> None:
        table = []
        for name, function in functions.items():
            monkeypatch.setattr(sys.modules[__name__], f"run_{name}", function, raising=False)
            table.append(Verb(name, f"{__name__}:Empty", f"{__name__}:run_{name}", "help", "Test"))
        monkeypatch.setattr(dispatch, "VERBS", tuple(table))
        monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])

    return put


def test_overview_imports_nothing_heavy() -> None:
    script = (
        "import sys; from megaladder.cli import main; main(['--help']); main(['nonsense']);"
        " print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "numpy", "pydantic", "tyro", "yaml", "transformers", "rich"}
    for verb in VERBS:
        assert verb.name in done.stdout


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_a_config_whose_keys_its_help_shows_and_a_function(
    verb: Verb, capsys
) -> None:
    config_class = load(verb.config)
    if not isinstance(config_class, type):
        config_class = config_class([])
    assert issubclass(config_class, StrictModel)
    assert callable(load(verb.run))
    assert verb.finished is None or callable(load(verb.finished))
    # one rule for every entry: run_ and the verb's last words
    entry = verb.run.split(":")[1].removeprefix("run_")
    assert verb.name.replace(" ", "_").replace("-", "_").endswith(entry)
    with pytest.raises(SystemExit) as caught:
        main([*verb.name.split(" "), "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    undocumented = [key for key, field in leaf_keys(config_class).items() if not field.description]
    assert undocumented == []
    assert len(shown.splitlines()) > 3


def test_verb_names_are_unique_and_two_words_win() -> None:
    assert len({verb.name for verb in VERBS}) == len(VERBS)
    assert find_verb(["sft", "run.yaml"])[0].name == "sft"
    assert find_verb(["sft", "run.yaml"])[1] == ["run.yaml"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("optim.lr: bad; fix: good"), 2, "megaladder: optim.lr: bad; fix: good\n"),
        (
            RunStopped("stopped after step 3; resume with: x"),
            3,
            "megaladder: stopped after step 3; resume with: x\n",
        ),
        (KeyboardInterrupt(), 130, "megaladder: interrupted\n"),
    ],
)
def test_exit_statuses(verbs, capsys, error: BaseException, status: int, message: str) -> None:
    verbs(fail=raiser(error))
    assert main(["fail"]) == status
    assert capsys.readouterr().err == message


def test_bugs_keep_their_traceback(verbs) -> None:
    verbs(fail=raiser(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["fail"])


def test_status_of_the_verb_is_passed_on(verbs) -> None:
    verbs(none=lambda config: None, two=lambda config: config.value)
    assert main(["none"]) == 0
    assert main(["two", "--value", "2"]) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sfft"], "unknown verb 'sfft'; fix: did you mean 'sft'?"),
        (["qqqq"], "unknown verb 'qqqq'; fix: megaladder --help lists them"),
        (["sft", "absent.yaml"], "absent.yaml: no such file; fix:"),
        (["sft"], "model.path is empty; fix:"),
        (
            ["check", "--model.path", "m", "--data.path", "d", "--parallel.vpp", "2"],
            "parallel.vpp 2 needs pipeline stages",
        ),
    ],
)
def test_user_errors_are_one_message_and_status_2(args: list[str], message: str, capsys) -> None:
    assert main(args) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_unknown_verb_suggests_within_a_family(capsys, monkeypatch) -> None:
    names = (
        "convert hf-to-megatron",
        "convert verify",
        "sft",
        "data make arithmetic",
        "data make countdown",
        "data stats",
    )
    table = tuple(Verb(name, "m:C", "m:f", "help", "G") for name in names)
    monkeypatch.setattr(dispatch, "VERBS", table)
    assert main(["convert", "hf_to_megatron"]) == 2
    assert "did you mean 'convert hf-to-megatron'?" in capsys.readouterr().err
    assert main(["convert"]) == 0
    assert "convert verify" in capsys.readouterr().out
    assert main(["data", "make", "--help"]) == 0
    assert "data make countdown" in (shown := capsys.readouterr().out)
    assert "data stats" not in shown
    assert main(["data", "make", "arithmetik", "--rows", "3"]) == 2
    assert "did you mean 'data make arithmetic'?" in capsys.readouterr().err
    assert find_verb(["data", "make", "countdown", "--rows", "3"]) == (table[4], ["--rows", "3"])


def test_print_config_is_the_resolved_file(tmp_path) -> None:
    done = megaladder(
        "sft", "--model.path", "m", "--data.path", "d", "--optim.lr", "1e-4", "--print-config"
    )
    assert done.returncode == 0
    assert "lr: 0.0001" in done.stdout
    path = tmp_path / "run.yaml"
    path.write_text(done.stdout)
    assert megaladder("sft", str(path), "--print-config").stdout == done.stdout


def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        f"{sys.executable} -m megaladder sft --help | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_doctor_says_what_is_missing_and_how_to_add_it(tmp_path, capsys) -> None:
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == 0
    features = json.loads((tmp_path / "d.json").read_text())["features"]
    assert features["train (CPU or GPU)"]["ready"]
    assert features["train (CPU or GPU)"]["versions"]["torch"].startswith("2.13.0")
    text = capsys.readouterr().out
    for name, finding in features.items():
        assert name in text
        assert finding["ready"] or (finding["reason"] in text and finding["command"] in text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def _rows(path, count: int) -> str:
    path.write_text(
        "".join(
            json.dumps({"question": f"What is {i} + {i}?", "answer": f"It is #### {2 * i}"}) + "\n"
            for i in range(count)
        )
    )
    return str(path)


def test_check_shows_arithmetic_memory_and_the_loss_tokens(tiny, tmp_path, capsys) -> None:
    data = _rows(tmp_path / "d.jsonl", 100)
    flags = [
        "--model.path",
        str(tiny),
        "--data.path",
        data,
        "--data.packing",
        "false",
        "--data.holdout",
        "4",
        "--train.epochs",
        "2.5",
    ]
    assert main(["check", *flags, "--parallel.tp", "2", "--train.micro_batch_size", "2"]) == 0
    text = capsys.readouterr().out
    assert "2 rank(s) = dp 1 × tp 2 × pp 1" in text
    assert "global batch 32 = dp 1 × micro 2 × accum 16" in text
    assert "100 rows of schema question-answer, 96 training samples, 4 held out" in text
    assert "3 an epoch × 2.5 epochs = 8" in text
    assert "about" in text.split("memory/rank")[1].splitlines()[0]
    loss_part = text.split("⟦")[2].split("⟧")[0]  # the first pair is in the heading
    assert loss_part.startswith("It is #### ")
    assert loss_part.endswith("<|im_end|>")
    assert not (tmp_path / "runs").exists()


def test_check_shows_the_sample_under_the_templates_arguments(tiny, tmp_path, capsys) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}{{ note }}"
    )
    flags = ["check", "--model.path", str(tiny), "--data.path", _rows(tmp_path / "d.jsonl", 40)]
    flags += ["--model.chat-template", str(template), "--model.chat-template-kwargs"]
    assert main([*flags, "{note: ' (be brief)'}"]) == 2, "the prompt is no part of the whole"
    assert "the prompt has ' (be brief)'" in capsys.readouterr().err
    template.write_text("{{ note }}" + template.read_text().removesuffix("{{ note }}"))
    assert main([*flags, "{note: 'Be brief.'}"]) == 0
    text = capsys.readouterr().out
    assert "Be brief.<|im_start|>user" in text and "assistant ⟦It is" in text
    assert main([*flags, "{nota: 'Be brief.'}"]) == 2
    assert "found 'nota'" in capsys.readouterr().err


def test_check_without_the_data(tiny, tmp_path, capsys) -> None:
    flags = ["check", "--model.path", str(tiny), "--data.path", str(tmp_path / "absent.jsonl")]
    assert main(flags) == 0
    assert (
        f"needs       data file {tmp_path / 'absent.jsonl'}: not found here"
        in capsys.readouterr().out
    )
    assert main([*flags, "--strict"]) == 2
    assert "strict: data file" in capsys.readouterr().err
    data = _rows(tmp_path / "d.jsonl", 40)
    assert main(["check", "--model.path", str(tiny), "--data.path", data, "--strict"]) == 0
    capsys.readouterr()
    assert main(["check", "--model.path", "some/hub-id", "--data.path", data]) == 0
    assert (
        "model.path some/hub-id: no such folder here, and no known model" in capsys.readouterr().out
    )
    assert (
        main(
            [
                "check",
                "--model.path",
                "models/Qwen3-14B-Base",
                "--data.path",
                data,
                "--parallel.tp",
                "8",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "14.77 G parameters" in said
        and "as published (the folder is not here)" in said
        and "memory/rank" in said
    )
    assert (
        main(
            [
                "check",
                "--model.path",
                "models/Qwen3-14B-Base",
                "--data.path",
                data,
                "--parallel.pp",
                "3",
            ]
        )
        == 2
    )


def test_check_of_a_grpo_run_and_of_a_layout_that_does_not_fit(tiny, tmp_path, capsys) -> None:
    flags = ["check", "--model.path", str(tiny), "--data.path", _rows(tmp_path / "d.jsonl", 8)]
    assert main([*flags, "--grpo.mini-batches", "4"]) == 0
    text = capsys.readouterr().out
    assert "16 prompts × 16 completions = 256 a step, in 4 update(s) of 64" in text
    assert "8 problems, 8 with prompts of at most 1,536 tokens" in text
    assert "<|im_start|>user\nWhat is 0 + 0?<|im_end|>\n<|im_start|>assistant\n" in text
    assert "answer      0 (graded as gsm8k)" in text
    assert main([*flags, "--rollout.max_tokens", "2047"]) == 2
    assert "expected prompts of at most 1 tokens" in capsys.readouterr().err
    assert main([*flags, "--parallel.pp", "3"]) == 2
    assert "do not divide the model's 2 layers" in capsys.readouterr().err
