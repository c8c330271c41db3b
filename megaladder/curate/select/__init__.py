"""`data select`: a recipe is a list of stages.

Each stage keeps some rows and says why it dropped the others."""
