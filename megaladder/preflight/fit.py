"""Does the model fit the layout, and is it whole? Told once, before any rank starts."""

from __future__ import annotations

from pathlib import Path

from megaladder.config.grpo import GrpoConfig
from megaladder.config.rules.layout import validate_layout
from megaladder.config.rules.model import require_model
from megaladder.config.sft import SftConfig
from megaladder.data.chat.tokenizer import tokenizer_dir
from megaladder.model.hf_config import model_shape, read_config_json


def check_model(config: SftConfig | GrpoConfig) -> None:
    """`validate_layout` where the model is a local folder.

    A hub id is checked by the ranks, after its download.

    Raises:
        ConfigError, ModelError: it does not fit, is neither a folder nor a hub id with a commit, or
        has no tokenizer.
    """
    require_model(config.model.path, config.model.revision)
    if (Path(config.model.path) / "config.json").is_file():
        validate_layout(config, model_shape(read_config_json(config.model.path)))
    tokenizer = config.model.tokenizer or config.model.path
    if Path(tokenizer).is_dir():
        tokenizer_dir(tokenizer)
