"""The product to try on one machine: a broker, real data, and a floor that never was."""
