import java.nio.ByteBuffer;
import org.apache.kafka.common.utils.ByteUtils;

/** The columns of a row, by the ids of `streams/measures.py`. */
final class Row {
    static final int EVENTS = 0;
    static final int LEADS = 6;
    static final int EVENTS_DISQUALIFIED = 12;
    static final int EVENTS_LOST = 13;
    static final int MACHINE_ANSWERS = 14;
    static final int DM_HANGUPS = 15;
    static final int AGENT_HANGUPS = 16;
    static final int IMPLIED = 17;
    static final int AWAITED = 18;
    static final int UNCALLED = 19;
    static final int DIALED_BEFORE_CREATION = 20;
    static final int ATTEMPT_MS = 21;
    static final int CONNECT_MS = 22;
    static final int ATTEMPT = 23;
    static final int CONNECT = 39;
    private static final int COLUMNS = 55;
    private static final int LONGEST = COLUMNS * (1 + 10);
    private static final int[] BOUNDS_SECONDS = {
        5, 15, 30, 60, 120, 180, 240, 300, 600, 900, 1800, 3600, 14400, 28800, 86400
    };

    private final long[] columns = new long[COLUMNS];

    /** Which bin of a histogram the duration is in. */
    static int bin(long durationMs) {
        int bin = 0;
        while (bin < BOUNDS_SECONDS.length && BOUNDS_SECONDS[bin] * 1000L < durationMs) {
            bin++;
        }
        return bin;
    }

    void add(int column, long n) {
        columns[column] += n;
    }

    void add(Row other) {
        for (int column = 0; column < COLUMNS; column++) {
            columns[column] += other.columns[column];
        }
    }

    boolean isEmpty() {
        for (long n : columns) {
            if (n != 0) {
                return false;
            }
        }
        return true;
    }

    /** The columns that are not 0, each behind its id. */
    byte[] packed() {
        ByteBuffer to = ByteBuffer.allocate(LONGEST);
        for (int column = 0; column < COLUMNS; column++) {
            if (columns[column] != 0) {
                to.put((byte) column);
                ByteUtils.writeVarlong(columns[column], to);
            }
        }
        byte[] packed = new byte[to.position()];
        to.flip().get(packed);
        return packed;
    }

    static Row unpacked(byte[] packed) {
        ByteBuffer from = ByteBuffer.wrap(packed);
        Row row = new Row();
        while (from.hasRemaining()) {
            row.columns[from.get()] = ByteUtils.readVarlong(from);
        }
        return row;
    }
}
