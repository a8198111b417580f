import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.utils.ByteUtils;

/** An event as the log of its lead keeps it: all that it says, with fingerprints of its id and its call's. */
record Entry(
        long atMs, Kind kind, long mark, long call,
        String campaign, String source, String location, String team, String agent,
        String word, String number) implements Comparable<Entry> {

    static final long NO_CALL = 0;
    private static final Comparator<String> MISSING_FIRST = Comparator.nullsFirst(Comparator.naturalOrder());
    private static final Comparator<Entry> ORDER = Comparator.comparingLong(Entry::atMs)
            .thenComparing(Entry::kind)
            .thenComparing(Entry::mark, Long::compareUnsigned)
            .thenComparing(Entry::call, Long::compareUnsigned)
            .thenComparing(Entry::campaign, MISSING_FIRST)
            .thenComparing(Entry::source, MISSING_FIRST)
            .thenComparing(Entry::location, MISSING_FIRST)
            .thenComparing(Entry::team, MISSING_FIRST)
            .thenComparing(Entry::agent, MISSING_FIRST)
            .thenComparing(Entry::word, MISSING_FIRST)
            .thenComparing(Entry::number, MISSING_FIRST);

    /** What makes two entries copies of one event: one id may serve a whole call. */
    record Identity(long mark, Kind kind, String answeredBy) {}

    static Entry of(Event event) {
        String word = switch (event.type()) {
            case CONNECT -> event.answeredBy();
            case CALL_ENDED -> event.hangupBy();
            case QUALIFIED, WON -> event.currency();
            case DISQUALIFIED, LOST -> event.reason();
            default -> null;
        };
        Object number = switch (event.type()) {
            case CALL_ENDED -> event.talkSeconds();
            case QUALIFIED -> event.expectedAmount();
            case WON -> event.amount();
            default -> null;
        };
        return new Entry(
                event.atMs(), event.type(), fingerprint(event.eventId()),
                given(event.callId()) == null ? NO_CALL : fingerprint(event.callId()),
                given(event.campaign()), given(event.source()), given(event.location()), given(event.team()),
                given(event.agent()), given(word), number == null ? null : number.toString());
    }

    private static String given(String text) {
        return text == null || text.isEmpty() ? null : text;
    }

    /** FNV-1a, with its bits mixed once more. */
    private static long fingerprint(String text) {
        long hash = 0xCBF29CE484222325L;
        for (int at = 0; at < text.length(); at++) {
            hash = (hash ^ text.charAt(at)) * 0x100000001B3L;
        }
        hash = (hash ^ hash >>> 32) * 0x9E3779B97F4A7C15L;
        return hash ^ hash >>> 29;
    }

    @Override
    public int compareTo(Entry other) {
        return ORDER.compare(this, other);
    }

    Identity identity() {
        return new Identity(mark, kind, kind == Kind.CONNECT ? word : null);
    }
}

/** A lead: the set of its events, in their order. */
final class Log {
    static final int MOST_ENTRIES = 1000;
    private static final ThreadLocal<ByteBuffer> ROOM =
            ThreadLocal.withInitial(() -> ByteBuffer.allocate(4 << 20));
    private static final Kind[] KINDS = Kind.values();

    private final List<Entry> entries = new ArrayList<>();

    int size() {
        return entries.size();
    }

    boolean has(Entry entry) {
        return Collections.binarySearch(entries, entry) >= 0;
    }

    /** One that it does not have. */
    void add(Entry entry) {
        entries.add(-1 - Collections.binarySearch(entries, entry), entry);
    }

    /** The entries that facts look at: of copies that contradict each other, the first in the order. */
    List<Entry> inForce() {
        Map<Entry.Identity, Entry> first = new LinkedHashMap<>();
        for (Entry entry : entries) {
            first.putIfAbsent(entry.identity(), entry);
        }
        return List.copyOf(first.values());
    }

    /** Each text is in there once. */
    byte[] packed() {
        ByteBuffer to = ROOM.get().clear();
        List<String> texts = new ArrayList<>();
        long beforeMs = 0;
        for (Entry entry : entries) {
            to.put((byte) entry.kind().ordinal());
            ByteUtils.writeVarlong(entry.atMs() - beforeMs, to);
            to.putLong(entry.mark()).putLong(entry.call());
            for (String text : new String[] {
                entry.campaign(), entry.source(), entry.location(), entry.team(), entry.agent(),
                entry.word(), entry.number()
            }) {
                write(text, texts, to);
            }
            beforeMs = entry.atMs();
        }
        byte[] packed = new byte[to.position()];
        to.flip().get(packed);
        return packed;
    }

    static Log unpacked(byte[] packed) {
        ByteBuffer from = ByteBuffer.wrap(packed);
        List<String> texts = new ArrayList<>();
        Log log = new Log();
        long atMs = 0;
        while (from.hasRemaining()) {
            Kind kind = KINDS[from.get()];
            atMs += ByteUtils.readVarlong(from);
            log.entries.add(new Entry(
                    atMs, kind, from.getLong(), from.getLong(),
                    read(from, texts), read(from, texts), read(from, texts), read(from, texts),
                    read(from, texts), read(from, texts), read(from, texts)));
        }
        return log;
    }

    /** 0 for none, or the place of the text, from 1; behind the place of a new one its length and bytes. */
    private static void write(String text, List<String> texts, ByteBuffer to) {
        int place = text == null ? 0 : texts.indexOf(text) + 1;
        boolean isNew = text != null && place == 0;
        ByteUtils.writeUnsignedVarint(isNew ? texts.size() + 1 : place, to);
        if (isNew) {
            texts.add(text);
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            ByteUtils.writeUnsignedVarint(bytes.length, to);
            to.put(bytes);
        }
    }

    private static String read(ByteBuffer from, List<String> texts) {
        int place = ByteUtils.readUnsignedVarint(from);
        if (place > texts.size()) {
            byte[] bytes = new byte[ByteUtils.readUnsignedVarint(from)];
            from.get(bytes);
            texts.add(new String(bytes, StandardCharsets.UTF_8));
        }
        return place == 0 ? null : texts.get(place - 1);
    }
}
