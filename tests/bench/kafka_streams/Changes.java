import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** What is added to which rows: by minute, and by rollup with its dimensions. */
final class Changes {
    record Place(long minute, String group) {}

    static final char SEPARATOR = '\u0001';
    private static final String SEGMENT = "campaign+source" + SEPARATOR;

    final Map<Place, Row> rows = new HashMap<>();

    static String segment(String campaign, String source) {
        return SEGMENT + campaign + SEPARATOR + source;
    }

    static String person(String team, String agent) {
        return "team+agent" + SEPARATOR + team + SEPARATOR + agent;
    }

    static String place(String location) {
        return "location" + SEPARATOR + location;
    }

    /** Rows of all time are of segments alone. */
    static boolean isOfSegment(String group) {
        return group.startsWith(SEGMENT);
    }

    void add(long atMs, String group, int column, long n) {
        rows.computeIfAbsent(new Place(atMs / 60_000 * 60, group), place -> new Row()).add(column, n);
    }

    /** In each rollup, under the event's own dimensions. */
    void addOfEvent(Entry entry, int column, long n) {
        for (String group : List.of(
                segment(Facts.orNone(entry.campaign()), Facts.orNone(entry.source())),
                person(Facts.orNone(entry.team()), Facts.orNone(entry.agent())),
                place(Facts.orNone(entry.location())))) {
            add(entry.atMs(), group, column, n);
        }
    }

    void addActivity(Entry entry) {
        switch (entry.kind()) {
            case CALL_ENDED -> { }
            case DISQUALIFIED -> addOfEvent(entry, Row.EVENTS_DISQUALIFIED, 1);
            case LOST -> addOfEvent(entry, Row.EVENTS_LOST, 1);
            default -> {
                int ofStage = Row.EVENTS + entry.kind().ordinal();
                addOfEvent(entry, Facts.isMachine(entry) ? Row.MACHINE_ANSWERS : ofStage, 1);
            }
        }
    }
}
