import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.function.Function;
import java.util.function.Predicate;

/** What follows from the events of a lead together; the paragraphs are those of `streams/README.md`. */
record Facts(
        String campaign, String source, String location, Map<Long, Hangup> hangups, List<Arrival> arrivals,
        Response response) {

    /** A call that ended at once, at the moment and under the dimensions of its reach. */
    record Hangup(Entry reach, boolean byAgent) {}

    record Arrival(long atMs, String team, String agent, boolean isImplied) {}

    /** The moments in milliseconds, null where there is none. */
    record Response(Long created, Long dialed, Long connected, boolean isUncalled) {}

    private static final String NONE = "none";
    private static final long HANGUP_MS = 15_000;
    private static final int CONNECTED = Kind.CONNECT.ordinal();
    private static final int NO_STAGE = -1;
    private static final Set<Kind> VERDICTS = EnumSet.of(Kind.QUALIFIED, Kind.DISQUALIFIED, Kind.WON);
    private static final Set<Kind> CLOSING = EnumSet.of(Kind.DISQUALIFIED, Kind.LOST, Kind.WON);

    static Facts of(List<Entry> live) {
        Map<Long, Hangup> hangups = hangups(live);
        List<Arrival> arrivals = arrivals(live, hangups);
        return new Facts(
                earliest(live, Entry::campaign), earliest(live, Entry::source),
                earliest(live, Entry::location), hangups, arrivals, response(live, arrivals));
    }

    static String orNone(String dimension) {
        return Objects.requireNonNullElse(dimension, NONE);
    }

    static boolean isMachine(Entry entry) {
        return entry.kind() == Kind.CONNECT && "machine".equals(entry.word());
    }

    /** Counts so many times what the lead adds to the rows. */
    void count(int times, Changes changes) {
        for (Hangup hangup : hangups.values()) {
            changes.addOfEvent(hangup.reach, hangup.byAgent ? Row.AGENT_HANGUPS : Row.DM_HANGUPS, times);
        }
        String segment = Changes.segment(campaign, source);
        for (int stage = 0; stage < arrivals.size(); stage++) {
            Arrival arrival = arrivals.get(stage);
            for (String group : List.of(
                    segment, Changes.person(arrival.team, arrival.agent), Changes.place(location))) {
                changes.add(arrival.atMs, group, Row.LEADS + stage, times);
                if (arrival.isImplied) {
                    changes.add(arrival.atMs, group, Row.IMPLIED, times);
                }
            }
        }
        if (response.created == null) {
            return;
        }
        long created = response.created;
        if (response.dialed != null && response.dialed < created) {
            changes.add(created, segment, Row.DIALED_BEFORE_CREATION, times);
            return;
        }
        changes.add(created, segment, Row.AWAITED, times);
        if (response.dialed != null) {
            long waited = response.dialed - created;
            changes.add(created, segment, Row.ATTEMPT + Row.bin(waited), times);
            changes.add(created, segment, Row.ATTEMPT_MS, times * waited);
        }
        if (response.connected != null && response.connected >= created) {
            long waited = response.connected - created;
            changes.add(created, segment, Row.CONNECT + Row.bin(waited), times);
            changes.add(created, segment, Row.CONNECT_MS, times * waited);
        }
        if (response.isUncalled) {
            changes.add(created, segment, Row.UNCALLED, times);
        }
    }

    private static Map<Long, Hangup> hangups(List<Entry> live) {
        Map<Long, Hangup> hangups = new HashMap<>();
        for (Entry end : live) {
            long call = end.call();
            if (call == Entry.NO_CALL || end != first(live, Kind.CALL_ENDED, call)) {
                continue;
            }
            Entry reach = first(live, Kind.DM_REACHED, call);
            if (reach == null || hasVerdict(live, call)) {
                continue;
            }
            long after = end.atMs() - reach.atMs();
            boolean endedSoon = 0 <= after && after < HANGUP_MS;
            boolean talkedLittle =
                    end.number() != null && Double.parseDouble(end.number()) * 1000 < HANGUP_MS;
            if (endedSoon || talkedLittle) {
                hangups.put(call, new Hangup(reach, "agent".equals(end.word())));
            }
        }
        return hangups;
    }

    private static boolean hasVerdict(List<Entry> live, long call) {
        return live.stream().anyMatch(entry -> entry.call() == call && VERDICTS.contains(entry.kind()));
    }

    private static Entry first(List<Entry> live, Kind kind, long call) {
        for (Entry entry : live) {
            if (entry.kind() == kind && entry.call() == call) {
                return entry;
            }
        }
        return null;
    }

    /** For each stage that the lead got to, the event by which it arrived. */
    private static List<Arrival> arrivals(List<Entry> live, Map<Long, Hangup> hangups) {
        List<Arrival> arrivals = new ArrayList<>();
        for (Entry entry : live) {
            Hangup hangup = entry.kind() == Kind.DM_REACHED ? hangups.get(entry.call()) : null;
            boolean isVoid = hangup != null && !hangup.byAgent;
            int stage = isVoid ? CONNECTED : stageOf(entry);
            while (arrivals.size() <= stage) {
                boolean isImplied = isVoid || arrivals.size() < stage;
                arrivals.add(
                        new Arrival(entry.atMs(), orNone(entry.team()), orNone(entry.agent()), isImplied));
            }
        }
        return arrivals;
    }

    private static int stageOf(Entry entry) {
        boolean isArrival = entry.kind().ordinal() <= Kind.WON.ordinal() && !isMachine(entry);
        return isArrival ? entry.kind().ordinal() : NO_STAGE;
    }

    private static Response response(List<Entry> live, List<Arrival> arrivals) {
        boolean isClosed = live.stream().anyMatch(entry -> CLOSING.contains(entry.kind()));
        return new Response(
                first(live, entry -> entry.kind() == Kind.LEAD_CREATED),
                first(live, entry -> entry.kind() == Kind.DIAL),
                first(live, entry -> stageOf(entry) == CONNECTED),
                arrivals.size() <= Kind.DIAL.ordinal() && !isClosed);
    }

    private static Long first(List<Entry> live, Predicate<Entry> isMeant) {
        for (Entry entry : live) {
            if (isMeant.test(entry)) {
                return entry.atMs();
            }
        }
        return null;
    }

    private static String earliest(List<Entry> live, Function<Entry, String> dimension) {
        for (Entry entry : live) {
            if (dimension.apply(entry) != null) {
                return dimension.apply(entry);
            }
        }
        return NONE;
    }
}
