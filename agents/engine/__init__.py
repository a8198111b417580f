"""The worker: from the records of a partition to what one transaction makes durable."""
