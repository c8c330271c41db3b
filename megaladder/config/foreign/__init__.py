"""Files of other trainers.

What their keys mean here (`meanings`), how they are read (`read`), and a run.yaml of ours from them
(`convert`)."""
