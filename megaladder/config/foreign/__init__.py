"""Files of other trainers: what their keys mean here (`meanings`), how they are read (`read`), and
a run.yaml of ours from them (`convert`)."""
