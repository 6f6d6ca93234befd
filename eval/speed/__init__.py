"""What selecting costs: time, memory, waiting, and how that grows."""
