"""A training step at its full size without its GPUs: every rank's bytes, collectives and transfers.

    record.py    process groups that record what a rank asks of them and move nothing
    world.py     one rank of a world of any size in this process: tensors without data
    step.py      the product's own model, buffers, optimizer, schedule and loss in that world
    experts.py   an even load, so that the all-to-alls have sizes
    memory.py    bytes that the rank holds
    match.py     do all ranks agree, does every transfer meet its partner, can the step end
    report.py    the table and the JSON, `plan`'s figures beside them
    verb.py      `megaladder dryrun`

Not here: this machine's abilities (`preflight`).
"""
