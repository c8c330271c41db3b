"""Commits of hub data sets: which one a name means today, so that a run can record it."""

from __future__ import annotations

import re
from typing import Any

from megaladder.errors import DataError

HUB_TIMEOUT_S = 30.0  # huggingface_hub tries downloads up to five times again
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether `revision` names one state for ever (40 hex digits), not a branch or a tag."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def hub_failures() -> tuple[type[Exception], ...]:
    """What the hub's client raises when the hub, the network or a cache fails.

    Its own errors have those of the HTTP library that it uses as bases; a failed connection is one
    of the library's alone. ValueError: an answer that is no JSON, a file that it refuses."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = (base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    return (*bases, OSError, ValueError)


def limit_patience() -> None:
    """Has requests to the hub end after `HUB_TIMEOUT_S` without a sign of life.

    huggingface_hub itself waits for ever for a hub that is silent. Before each use of it: the client
    is made anew after some failures.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    hooks = session.event_hooks
    if _be_patient not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _be_patient]}


def _be_patient(request: Any) -> None:
    """Gives a request that would wait for ever our patience."""
    given = request.extensions.get("timeout") or {}
    phases = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {phase: given.get(phase) or HUB_TIMEOUT_S for phase in phases}


def resolve_commit(repo: str, revision: str | None = None) -> str:
    """The commit that `revision` (null = the main branch) of a data set names now.

    A commit is returned as it is, without asking the hub.

    Raises:
        DataError: the hub cannot be reached, or has no such data set or revision.
    """
    if revision is not None and is_commit(revision):
        return revision
    from huggingface_hub import HfApi

    limit_patience()
    try:
        commit = HfApi().dataset_info(repo, revision=revision).sha
    except hub_failures() as error:
        raise DataError(
            f"{repo}: expected the hub to say which commit {revision or 'main'} is, found"
            f" {type(error).__name__}; fix: name the commit, --revision COMMIT (40 hex digits, shown at"
            f" https://huggingface.co/datasets/{repo}/commits/main), or try again with network"
        ) from error
    if commit is None:
        raise DataError(f"{repo}: the hub names no commit; fix: name one (40 hex digits)")
    return commit
