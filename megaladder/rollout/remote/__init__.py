"""Replicas that are not children of rank 0.

On the job's other nodes (`nodes`), behind vLLM's own server (`server`), stand-ins for tests.
"""
