"""Weight clients that translate what vLLM's trainer side says.

Several engines, or a JSON wire, can then take it.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from megaladder.rollout.engine import WeightClient


class PickledHandles:
    """Sends CUDA handles as the base64 pickle that vLLM's own HTTP client uses.

    The engine's wire carries JSON only.
    """

    def __init__(self, client: WeightClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        info = dict(update_info)
        handles = info.pop("ipc_handles", None)
        if handles is not None:
            info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode("ascii")
        self._client.update_weights(
            {key: value for key, value in info.items() if value is not None}
        )


class RankedWorkers:
    """Lets one NCCL group span several engines.

    vLLM numbers one engine's workers from `rank_offset`; each engine is told its own.

    Each engine is told its own.
    """

    def __init__(self, client: WeightClient, num_replicas: int, engine_tp: int) -> None:
        self._client, self._num_replicas, self._engine_tp = client, num_replicas, engine_tp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def init_weight_transfer_engine(
        self, init_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ) -> None:
        assert isinstance(init_info, Mapping), "vLLM's trainer side speaks of one engine"
        first = init_info["rank_offset"]
        self._client.init_weight_transfer_engine(
            [
                {**init_info, "rank_offset": first + index * self._engine_tp}
                for index in range(self._num_replicas)
            ]
        )
