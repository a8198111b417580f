"""What events mean: leads, rows, windows, measures. Pure: no clock, no socket, no randomness."""
