"""What is said to Kafka and read from it, and every private part of Faust and aiokafka that this takes."""
