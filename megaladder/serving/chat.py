"""`megaladder chat`: turns in, answers out as they come, by the engine of rollouts and benchmarks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import TextIO

from megaladder.config.sections.evaluate import PromptSection
from megaladder.config.sections.shared import ModelSection
from megaladder.console import VOICE
from megaladder.data.chat.tokenizer import model_tokenizer
from megaladder.evaluation.benchmarks.prompting import Prompter, make_prompter
from megaladder.evaluation.verb import make_engine
from megaladder.files.models import find_model
from megaladder.rollout.engine import Engine, Piece, SamplingParams, expand
from megaladder.serving.settings import ChatConfig
from megaladder.types import FinishReason, Message

LEAVE, AGAIN = ("/quit", "/exit", "/q"), "/new"


@dataclass
class Conversation:
    """The turns so far. `ask` adds a question and its answer; `out` gets the answer as it comes."""

    engine: Engine
    prompter: Prompter
    params: SamplingParams
    out: TextIO
    turns: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> None:
        """Writes the answer to one more turn of the user.

        Ctrl-C breaks it off: it stays in the conversation as far as it came."""
        self.turns.append(Message("user", text))
        ids = self.prompter.ids(self.prompter.render(self.turns))
        told: list[Piece] = []
        try:
            completion = self.engine.answer(
                expand(ids, self.params)[0], lambda piece: self._tell(piece, told)
            )
            answer = completion.text
            cut = " … (cut at max_tokens)" * (completion.finish_reason is FinishReason.LENGTH)
        except KeyboardInterrupt:
            answer, cut = "".join(piece.text for piece in told), " … (broken off)"
        self.turns.append(Message("assistant", answer))
        print(cut, file=self.out, flush=True)

    def _tell(self, piece: Piece, told: list[Piece]) -> None:
        if piece.start == 0 and told:
            told.clear()
            print("\n… (the engine was restarted: from the beginning)", file=self.out)
        told.append(piece)
        print(piece.text, end="", file=self.out, flush=True)


def run_chat(config: ChatConfig) -> None:
    """The verb. With `prompt` only the answers go to standard output."""
    folder = find_model(config.model)
    model = ModelSection(path=str(folder.hf), tokenizer=config.tokenizer)
    tokenizer = model_tokenizer(model)
    prompter = make_prompter(tokenizer, PromptSection(system=config.system), model.path)
    logs = Path(mkdtemp(prefix="megaladder-chat-"))
    for note in config.unread:
        print(f"note: {note}", file=sys.stderr)
    print(f"{folder.name}: loading", file=sys.stderr, flush=True)
    # only answers go to standard output
    with redirect_stdout(sys.stderr):
        made = make_engine(model, config.rollout, config.seed or 0, tokenizer, logs)
    # a bar has no place where somebody types
    VOICE.end()
    with made as engine:
        talk = Conversation(engine, prompter, _params(config, prompter), sys.stdout)
        for text in config.prompt or _typed():
            if text == AGAIN:
                talk.turns.clear()
            else:
                talk.ask(text)
    # an error names the engine's log: only what ends well leaves nothing behind
    shutil.rmtree(logs)


def _params(config: ChatConfig, prompter: Prompter) -> SamplingParams:
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        seed=config.seed,
        stop_token_ids=prompter.stop_token_ids,
    )


def _typed() -> Iterator[str]:
    """Lines that somebody types, or that a pipe brings, until one that leaves."""
    person = sys.stdin.isatty()
    if person:
        print(f"a line is a turn; {AGAIN} starts again, {LEAVE[0]} leaves", file=sys.stderr)
    while True:
        if person:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() in LEAVE:
            return
        if line.strip():
            yield line.strip()
