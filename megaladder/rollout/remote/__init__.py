"""Replicas that are no children of rank 0: on the job's other nodes (`nodes`), behind vLLM's own
server (`server`), stand-ins for tests."""
