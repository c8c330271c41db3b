"""Published studies as commands.

`megaladder study NAME`, from one YAML of stages to findings with verdicts."""
