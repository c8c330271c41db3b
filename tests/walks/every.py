"""All walks, by verb. A verb without one fails a test.

To add a verb's walk, write a `Walk` (in the file here that fits, or in a new one whose function
stands in `every_walk`): the verb, the least that it must be given, and for each key whose made-up
value means nothing, or whose work its runs do not show, an entry in `values`, `beside` or `needs`.
What takes seconds or a GPU has a stand-in. Then run

    python -m pytest tests/config/test_keys_at_work.py -m "slow or not slow" -k "VERB"
"""

from __future__ import annotations

from pathlib import Path

from verb_keys import verb_configs
from walks.engines import engine_walks
from walks.models import model_walks
from walks.plain import plain_walks
from walks.serving import serving_walks
from walks.training import training_walks
from walks.walk import Walk

KEYS = {verb.name: list(verb.keys) for verb in verb_configs()}


def every_walk(i: Path) -> list[Walk]:
    """`i`: the folder of the inputs."""
    return [
        *(*plain_walks(i), *serving_walks(i), *engine_walks(i)),
        *(*model_walks(i), *training_walks(i)),
    ]


def keys_of(how: Walk) -> list[str]:
    """The keys that a walk has to change: the verb's own, and those that it names."""
    # the first word after `data make` chooses the class of the configuration
    own = [key for key in KEYS[how.verb] if (how.verb[:9], key) != ("data make", "kind")]
    if how.shares:
        own = [key for key in own if key not in KEYS[how.shares]]
    return [key for key in (*own, *how.keys) if key not in how.shown_by]
