"""What a training would need and how long it would take, on hardware that need not be at hand: arithmetic only."""
