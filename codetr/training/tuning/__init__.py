"""Short trainings that find settings: a learning rate, a batch size."""
