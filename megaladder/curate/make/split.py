"""Which half of the question space a generated question belongs to.

The split is a property of the question's text, not of a run.

Two files made with any seeds, sizes and dates never share a question between train and test,
because membership is a hash of the text.
"""

from __future__ import annotations

import hashlib

TEST_BUCKETS = 16  # one question in 16 is a test question


def question_id(kind: str, question: str) -> str:
    """`arith-3f2a…`: stable over runs and machines.

    64 bits, so a clash needs billions of questions."""
    return f"{kind}-{hashlib.blake2b(question.encode('utf-8'), digest_size=8).hexdigest()}"


def is_test_question(question: str) -> bool:
    """True for one question in 16.

    By blake2b of its text (another key than the id's, so that ids do not show the split)."""
    digest = hashlib.blake2b(question.encode("utf-8"), digest_size=2, key=b"split").digest()
    return int.from_bytes(digest, "big") % TEST_BUCKETS == 0
