"""What a run will cost, by formulas, and by playing its rounds without a model."""
