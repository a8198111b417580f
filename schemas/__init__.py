"""What arrives and what leaves: the contract of callfunnel. Pure: no clock, no socket, no randomness."""
