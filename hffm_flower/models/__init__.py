"""The model: encoders, projectors, fusion backbone, adapters, heads."""
