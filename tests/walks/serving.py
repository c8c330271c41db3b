"""The walks of the verbs for a model that is there: chat, serve, push."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from walks.engines import ENGINE_PROBES, STAND_INS, VLLM_KEYS
from walks.stand_ins import HeldInName, ServerInName, asked_of_hub
from walks.walk import Walk


def serving_walks(i: Path) -> list[Walk]:
    """`i`: the folder of `make_inputs` and `make_models`."""
    return [_push(i), _serve(i), _chat(i)]


def _push(i: Path) -> Walk:
    hub, asked = "huggingface_hub.hf_api:HfApi", ("create_repo", "upload_file", "upload_folder")
    to_hub = {"to": "hf://an-owner/a-model"}
    return Walk(
        "push",
        {"model": str(i / "model"), "to": "o"},
        values={"model": str(i / "other_model"), "to": "another", "evals": [str(i / "scored")]},
        beside={"force": {"to": str(i / "filled"), "force": True}},
        needs={"private": to_hub, "message": to_hub},
        stand_ins=dict.fromkeys((f"{hub}.{name}" for name in asked), asked_of_hub),
    )


def _serve(i: Path) -> Walk:
    serve = "megaladder.serving.serve"
    return Walk(
        "serve",
        {"model": str(i / "model")},
        values={"model": str(i / "other_model"), "host": "0.0.0.0", "port": 8001},
        probes=(f"{serve}:_wait_until_ready",),
        stand_ins={
            f"{serve}:find_spec": lambda _name: True,
            f"{serve}:mkdtemp": _folder_here,
            f"{serve}:hold_port": HeldInName,
            f"{serve}:_answers": lambda _url: True,
            f"{serve}:_stop": lambda _child: None,
            f"{serve}:subprocess": SimpleNamespace(
                Popen=ServerInName, STDOUT=None, DEVNULL=None, TimeoutExpired=TimeoutError
            ),
        },
    )


def _chat(i: Path) -> Walk:
    from_vllm = {"rollout.engine": "vllm"}
    return Walk(
        "chat",
        {
            "model": str(i / "model"),
            "prompt": ["What is 2 + 3?"],
            "seed": 1,
            "rollout.engine": "fake",
        },
        values={
            "model": str(i / "other_model"),
            "prompt": ["What is 2 + 3?", "Why?"],
            "tokenizer": str(i / "tokenizer"),
            "rollout.engine": "vllm",
        },
        needs={f"rollout.{name}": from_vllm for name in VLLM_KEYS},
        probes=ENGINE_PROBES,
        stand_ins={**STAND_INS, "megaladder.serving.chat:mkdtemp": _folder_here},
    )


def _folder_here(prefix: str) -> str:
    """Takes the place of `mkdtemp`: a name that two runs share."""
    Path(prefix).mkdir()
    return prefix
