import java.nio.file.Path;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * callfunnel's job in Kafka Streams: the same rows and logs of leads, exactly once, on RocksDB.
 *
 * <p>Left out: some checks of a record, reasons of dead letters, sending events home that came to another
 * partition, the archive of old leads, positions and other settings of the fold, metrics, a view.
 */
public final class Funnel {
    private Funnel() {}

    /** `Funnel BROKER TOPIC EVENTS FOLDER DEAD_LETTERS`: ends once it has committed so many events. */
    public static void main(String[] arguments) throws InterruptedException {
        CountDownLatch toCome = new CountDownLatch(Integer.parseInt(arguments[2]));
        KafkaStreams streams = new KafkaStreams(
                topology(arguments[1], arguments[4], toCome), settings(arguments[0], Path.of(arguments[3])));
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        toCome.await();
        streams.close();
    }

    private static Properties settings(String broker, Path folder) {
        Properties settings = new Properties();
        settings.putAll(Map.of(
                StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, broker,
                StreamsConfig.APPLICATION_ID_CONFIG, folder.getFileName().toString(),
                StreamsConfig.STATE_DIR_CONFIG, folder.toString(),
                StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2,
                // About as many events a transaction as callfunnel takes of a full topic.
                StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000,
                StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20));
        settings.putAll(Map.of(
                "auto.offset.reset", "earliest",
                "max.poll.records", 5000,
                "producer.linger.ms", 100,
                "producer.batch.size", 256 << 10));
        return settings;
    }

    private static Topology topology(String topic, String deadLetters, CountDownLatch toCome) {
        return new Topology()
                .addSource("events", new ByteArrayDeserializer(), new ByteArrayDeserializer(), topic)
                .addProcessor("fold", () -> new Fold(toCome), "events")
                .addStateStore(store("leads", Serdes.serdeFrom(
                        (name, log) -> log.packed(), (name, packed) -> Log.unpacked(packed))), "fold")
                .addStateStore(store("rows", Serdes.serdeFrom(
                        (name, row) -> row.packed(), (name, packed) -> Row.unpacked(packed))), "fold")
                .addStateStore(store("newest", Serdes.Long()), "fold")
                .addSink("dead", deadLetters, new ByteArraySerializer(), new ByteArraySerializer(), "fold");
    }

    private static <V> StoreBuilder<KeyValueStore<String, V>> store(String name, Serde<V> values) {
        return Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(name), Serdes.String(), values)
                .withCachingEnabled()
                .withLoggingEnabled(Map.of());
    }

    /** The fold of a partition, event by event. */
    private static final class Fold extends ContextualProcessor<byte[], byte[], byte[], byte[]> {
        private final CountDownLatch toCome;
        private KeyValueStore<String, Log> leads;
        private KeyValueStore<String, Row> rows;
        private KeyValueStore<String, Long> newest;

        Fold(CountDownLatch toCome) {
            this.toCome = toCome;
        }

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            super.init(context);
            leads = context.getStateStore("leads");
            rows = context.getStateStore("rows");
            newest = context.getStateStore("newest");
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            Event event = Event.of(record.key(), record.value());
            if (event == null || !isTaken(event)) {
                context().forward(record);
            }
            toCome.countDown();
        }

        /** Whether the lead has room for the event. */
        private boolean isTaken(Event event) {
            Log known = leads.get(event.leadId());
            Log log = known == null ? new Log() : known;
            Entry entry = Entry.of(event);
            if (log.has(entry)) {
                return true;
            }
            if (log.size() == Log.MOST_ENTRIES) {
                return false;
            }
            Facts before = Facts.of(log.inForce());
            log.add(entry);
            Facts after = Facts.of(log.inForce());
            Changes changes = new Changes();
            changes.addActivity(entry);
            if (!after.equals(before)) {
                before.count(-1, changes);
                after.count(1, changes);
            }
            leads.put(event.leadId(), log);
            long newestMinute = advance(entry.atMs() / 60_000 * 60);
            changes.rows.forEach((place, row) -> {
                if (!row.isEmpty()) {
                    add(place, row, newestMinute);
                }
            });
            return true;
        }

        /** The minute of the newest event; when it changes, rows expire. */
        private long advance(long minute) {
            Long before = newest.get("minute");
            if (before != null && before >= minute) {
                return before;
            }
            newest.put("minute", minute);
            for (Resolution resolution : Resolution.values()) {
                String first = resolution.key(before == null ? 0 : resolution.firstKept(before));
                String end = resolution.key(resolution.firstKept(minute));
                try (KeyValueIterator<String, Row> expired = rows.range(first, end)) {
                    expired.forEachRemaining(row -> rows.delete(row.key));
                }
            }
            return minute;
        }

        private void add(Changes.Place place, Row change, long newestMinute) {
            for (Resolution resolution : Resolution.values()) {
                long pane = resolution.paneOf(place.minute());
                if (resolution.isOf(place.group()) && pane >= resolution.firstKept(newestMinute)) {
                    add(resolution.key(pane) + Changes.SEPARATOR + place.group(), change);
                }
            }
            if (Changes.isOfSegment(place.group())) {
                add("all" + Changes.SEPARATOR + 0 + Changes.SEPARATOR + place.group(), change);
            }
        }

        private void add(String key, Row change) {
            Row row = rows.get(key);
            if (row == null) {
                row = new Row();
            }
            row.add(change);
            rows.put(key, row.isEmpty() ? null : row);
        }
    }
}
