"""What a training needs and how long it takes, on hardware that need not be at hand: arithmetic only."""
