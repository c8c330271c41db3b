"""A journal keeps verdicts in memory, not answers: its size does not depend on their length."""

import tracemalloc

from megaladder.evaluation.store import Journal, Record

NUM_SAMPLES = 20


def write(folder, num_tokens: int) -> None:
    with Journal(folder, {"made": "with"}) as journal:
        for sample in range(NUM_SAMPLES):
            ids = [(sample * 7919 + place) % 150_000 for place in range(num_tokens)]
            text = f"{sample} " * num_tokens
            record = Record("q", sample, text, ids, "length", False, "5", "wrong")
            journal.append(record)


def held_bytes(folder) -> int:
    """Bytes that a journal holds once it is open."""
    tracemalloc.start()
    try:
        with Journal(folder, {"made": "with"}) as journal:
            assert journal.num_resumed == NUM_SAMPLES
            return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_answers(tmp_path):
    for num_tokens in (10, 20_000):
        write(tmp_path / str(num_tokens), num_tokens)
    held_bytes(tmp_path / "10")  # what is imported once
    few, many = held_bytes(tmp_path / "10"), held_bytes(tmp_path / "20000")
    extra_tokens = NUM_SAMPLES * (20_000 - 10)
    assert many - few < 0.05 * extra_tokens  # 400 kB of text ids would be 43 bytes a token


def test_what_was_appended_is_read_back_from_the_file(tmp_path):
    records = [
        Record("é", 0, "ü\n\u2028", [1, 2], "stop", True, "½", "correct", "", 3, 2),
        Record("q", 7, "", [], "abort", None, None, "not_judged"),
    ]
    with Journal(tmp_path, {}) as journal:
        for record in records:
            journal.append(record)
        assert list(journal.stored.values()) == records
    with Journal(tmp_path, {}) as journal:
        assert list(journal.stored.values()) == records
        assert [verdict.num_tokens for verdict in journal.records.values()] == [2, 0]
        journal.append(Record("q", 8, "later", [5], "stop", False, "1", "wrong"))
        assert journal.stored["q", 8].response == "later"
        assert list(journal.stored)[:2] == [("é", 0), ("q", 7)] and len(journal.stored) == 3
