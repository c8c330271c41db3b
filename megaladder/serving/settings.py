"""Configuration of `chat`, `serve` and `push`: what to do with a model that is there.

The string under a field is its `--help` text. No file is touched here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from megaladder.config.base import CommaStrs, Positional, StrictModel
from megaladder.config.rules.engine import READ_BY_VLLM
from megaladder.config.rules.unread import unread_notes
from megaladder.config.sections.engine import EngineSection, Positive


class ChatConfig(StrictModel):
    """Talk with a model, with the chat template and the ends of answers that its folder holds.

    Example: megaladder chat runs/sft --prompt "What is 2+3?"
    """

    model: Positional[str]
    """Hugging Face folder, or run folder: its newest export (hf/step_N)."""
    prompt: tuple[str, ...] = ()
    """Ask this and leave; several make one conversation. None = a conversation: a line is a turn,
    /new starts again, /quit or the end of input leaves."""
    system: str | None = None
    """System message. null = none."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature; 0 = greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus: keep the likeliest tokens up to this probability."""
    max_tokens: Positive = 2048
    """Longest answer, tokens."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Makes answers repeatable. null = other ones each time."""
    tokenizer: str | None = None
    """Folder of the tokenizer; null = the model's own."""
    rollout: EngineSection = EngineSection()

    @property
    def unread(self) -> list[str]:
        """Keys that the chosen engine does not read, a line each."""
        return unread_notes(self, READ_BY_VLLM)


class ServeConfig(StrictModel):
    """An OpenAI-compatible address for a model, by vLLM's own server, until Ctrl-C.

    Example: megaladder serve runs/sft --port 8000"""

    model: Positional[str]
    """Hugging Face folder, or run folder: its newest export (hf/step_N)."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than loopback are open to the network: VLLM_API_KEY in the
    environment is then asked for."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port. 0 = a free one."""
    name: str | None = None
    """Name of the model in requests. null = its folder's name."""
    tp: Positive = 1
    """Tensor parallel GPUs (CPU: processes)."""
    max_model_len: Positive | None = None
    """Longest prompt plus answer, tokens. null = the model's own limit."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that the server may take. Not read on CPU."""
    cpu_kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Key/value cache on a CPU, GiB. Not read on a GPU."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """Seconds that loading the model may take."""


class PushConfig(StrictModel):
    """A model with a model card, to a folder or to the hub.

    Example: megaladder push runs/sft --to published/my-model --evals runs/eval/step_640"""

    model: Positional[str]
    """Hugging Face folder, or run folder: its newest export, with what the run recorded."""
    to: str
    """A folder; or hf://OWNER/NAME, a repository of the hub (hf auth login, or HF_TOKEN, lets you
    in)."""
    evals: CommaStrs = ()
    """Folders of `eval` whose scores, with intervals, go into the card."""
    license: str | None = None
    """License tag of the card, e.g. apache-2.0. null = none is stated."""
    private: bool = True
    """A new hub repository is private."""
    message: str = "Model and card, by megaladder push"
    """Commit message on the hub."""
    force: bool = False
    """Write into a folder that is not empty."""

    @model_validator(mode="after")
    def _hub_settings(self) -> PushConfig:
        if not self.to:
            raise ValueError("to is empty; fix: --to FOLDER, or --to hf://OWNER/NAME")
        return self
