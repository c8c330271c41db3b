"""Words for whoever waits: what goes on, since when, how much is left; a bar on a terminal."""

from megaladder.console.voice import QUIET, VOICE, Task, clock, doing, draws, is_quiet, tell

__all__ = ["QUIET", "VOICE", "Task", "clock", "doing", "draws", "is_quiet", "tell"]
