"""Bytes and seconds of a training layout before any GPU minute.

Closed formulas, a search over layouts, figures from data files.

    hardware.yaml, models.yaml     GPUs and links, known models: data with sources
    layout.py                      the nouns: PlannedLayout, Work, Software
    memory.py                      bytes per GPU, by part
    throughput.py                  seconds per step, by part; calibration.yaml holds its few fitted
                                   numbers
    experts.py                     what a layer with experts takes: all-to-all, grouped products
    grpo.py                        phases of a GRPO round
    search.py                      every layout that divides the model and fits the memory, fastest
                                   first
    verb.py                        `megaladder plan`

No torch, megatron or vllm. Not here: whether this machine can do it (`preflight`), what a run
really took (`metrics.jsonl`), what others measured (tools/study/, docs/plan.md).
"""
