"""Models, checkpoints and drafters against transformers, with tiny seeded weights."""
