// Publishes lines of {"key", "value", "at_ms"} from standard input with kafkajs and its default partitioner.
const { Kafka, logLevel } = require("kafkajs");

const [broker, topic] = process.argv.slice(2);
const lines = require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean).map(JSON.parse);

(async () => {
  const producer = new Kafka({ brokers: [broker], logLevel: logLevel.ERROR }).producer();
  await producer.connect();
  for (let i = 0; i < lines.length; i += 100) {
    const messages = lines.slice(i, i + 100).map(({ key, value, at_ms }) => ({ key, value, timestamp: `${at_ms}` }));
    await producer.send({ topic, acks: -1, messages });
  }
  await producer.disconnect();
})();
