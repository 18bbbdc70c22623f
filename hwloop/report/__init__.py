"""What was found, told: reads records and computes nothing new."""
