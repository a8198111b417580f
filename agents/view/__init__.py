"""The funnel as people and Prometheus read it: made from the tables alone, by any number of processes."""
