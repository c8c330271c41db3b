"""One optimizer step, the SFT and GRPO loops, pure losses, and the policy for numbers that are not
finite.

Importing this package prepares megatron-core for the machine (see `platform.prepare_megatron`).
"""

from megaladder import platform

platform.prepare_megatron()
