"""Training data: file → Example → TokenSample → PackedBatch, and the curation of it (`curate/`).

No torch in this folder."""
