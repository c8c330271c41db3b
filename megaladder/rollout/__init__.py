"""Generation: one engine protocol, a deterministic fake, one vLLM wrapper.

Shared by GRPO and benchmarks. Imports no torch, no vLLM.
"""
