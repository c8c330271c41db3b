"""What the server of `clean_fork` has imported before it forks: all that runs need, and nothing
computed but what they were made by.

Its objects are frozen: megatron-core collects garbage at every save, and a fork would look through
a million objects of imported modules each time.
"""

import atexit
import gc

import pytest  # noqa: F401
import tiny_models  # noqa: F401

# an optimizer loads it when it is first made
import torch._dynamo  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: F401

import megaladder.checkpoint.checkpointer
import megaladder.checkpoints_conv.live_model
import megaladder.train.grpo
import megaladder.train.sft  # noqa: F401
from megaladder.files import surroundings

surroundings.environment()
gc.collect()
gc.freeze()
# else libraries report what is left at the server's end
atexit.register(gc.unfreeze)
