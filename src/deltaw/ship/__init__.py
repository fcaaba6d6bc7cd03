"""What leaves the house: merged models, and the proof that they are faithful."""
