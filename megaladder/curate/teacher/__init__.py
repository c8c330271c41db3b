"""`data sample`: answers of a teacher model, graded, for training.

Here and not in `data/`, because it needs the engine and the grader."""
