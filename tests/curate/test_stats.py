"""`data stats` and the row reader and writer behind every data verb."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megaladder.config.verbs.data import StatsConfig
from megaladder.curate import stats
from megaladder.curate.rows import RowWriter, fetch_rows, iter_rows
from megaladder.curate.stats import run_stats
from megaladder.errors import DataError, ModelError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture
def tokenizer_folder(tmp_path):
    """One token a character of `abc`, role names and control tokens are single tokens."""
    words = ["<|im_start|>", "<|im_end|>", "user", "assistant", " ", "a", "b", "c", "?"]
    core = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="?")
    )
    core.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def row(question: str, answer: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def test_counts_by_hand(tmp_path, tokenizer_folder, capsys) -> None:
    path = tmp_path / "train.jsonl"
    rows = [row("a", "b"), row("a b", "c c c"), row("A!", "b b"), row("a", "b")]
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    run_stats(
        StatsConfig(path=str(path), tokenizer=tokenizer_folder, json_file=str(tmp_path / "s.json"))
    )
    found = json.loads((tmp_path / "s.json").read_text())
    assert (
        found["rows"],
        found["layouts"],
        found["repeated_rows"],
        found["questions"],
        found["repeated_questions"],
    ) == (4, {"learn": "messages"}, 1, 4, 2)
    # <start> user _ a <end> <start> assistant _ b <end>: 10 tokens, the last two with loss; a blank
    # and a word more are two tokens more
    assert found["token_quantiles"]["p0"] == 10
    assert found["tokens"] == 10 + 16 + 12
    assert found["loss_tokens"] == 2 + 6 + 4
    assert found["loss_token_share"] == pytest.approx(12 / 38)
    shown = capsys.readouterr().out
    assert "layout            sft: messages" in shown
    assert "31.6% with loss" in shown
    assert "<|im_start|>usera<|im_end|>" in shown.replace("\n", "").replace(" ", ""), (
        "the first sample, as rendered"
    )


def test_rl_rows_bad_rows_and_no_tokenizer(tmp_path, capsys) -> None:
    path = tmp_path / "rl.jsonl"
    path.write_bytes(
        b'{"data_source": "x", "prompt": "p q r", "reward_model": {"ground_truth":'
        b' "1"}}\n{"prompt": "\xff"}\n'
    )
    run_stats(StatsConfig(path=str(path), json_file=str(tmp_path / "s.json")))
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["rows"], found["layouts"], found["bad_rows"]) == (
        2,
        {"ask": "verl"},
        {"not UTF-8": 1},
    )
    assert "not UTF-8; first:" in capsys.readouterr().out
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="empty"):
        run_stats(StatsConfig(path=str(empty)))


def test_rows_that_training_could_not_use_are_counted_without_a_tokenizer_too(
    tmp_path, capsys, monkeypatch
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    seen = {"messages": [{"role": "user", "content": [picture]}, row("a", "b")["messages"][1]]}
    unanswered = {"messages": row("a", "b")["messages"][:1]}
    path = tmp_path / "chat.jsonl"
    lines = [json.dumps(one) for one in (row("a", "b"), seen, unanswered)]
    path.write_text("\n".join([*lines, "{"]))
    run_stats(StatsConfig(path=str(path), json_file=str(tmp_path / "s.json")))
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["unusable_rows"] == {"part image_url": 1, "no assistant text": 1}
    assert found["bad_rows"] == {"invalid JSON": 1}
    shown = capsys.readouterr().out
    assert "1 × part image_url, 1 × no assistant text (of the first 1,000)" in shown
    assert "--tokenizer MODEL" in shown
    path.write_text("\n".join([json.dumps(unanswered)] * 3))
    monkeypatch.setattr(stats, "LOOKED_AT", 2)  # rows, whether they can be used or not
    run_stats(StatsConfig(path=str(path)))
    assert "2 × no assistant text (of the first 2)" in capsys.readouterr().out


def test_rows_of_no_known_layout_and_a_missing_tokenizer_are_errors(tmp_path, capsys) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"alpha": 1}\n{"alpha": 2}\n')
    with pytest.raises(DataError, match="found rows with the columns alpha"):
        run_stats(StatsConfig(path=str(path)))
    assert "rows              2" in capsys.readouterr().out
    # before anything is read
    with pytest.raises(ModelError, match="no such folder"):
        run_stats(StatsConfig(path="absent.jsonl", tokenizer="absent folder"))


def test_fetched_rows_are_the_lines_in_the_order_asked_for(tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"i": 0}\r\n{"i":  1, "t": "\xe2\x80\xa8"}\n{"i": 2}')
    assert [item.data["i"] for item in iter_rows(path)] == [0, 1, 2]
    assert list(fetch_rows(path, [2, 0, 1])) == [
        b'{"i": 2}\n',
        b'{"i": 0}\n',
        b'{"i":  1, "t": "\xe2\x80\xa8"}\n',
    ]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old\n")
    with pytest.raises(RuntimeError), RowWriter(path) as writer:
        writer.write({"a": 1})
        raise RuntimeError
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]
    with (
        pytest.raises(DataError, match="one parquet schema"),
        RowWriter(tmp_path / "y.parquet") as writer,
    ):
        writer.write_all([{"a": 1}, {"a": "text"}])
    assert not (tmp_path / "y.parquet").exists()
