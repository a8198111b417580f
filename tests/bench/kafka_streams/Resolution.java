/** How long the panes of rows are, and for how long they are kept after their end. */
enum Resolution {
    MINUTES("1m", 60, 6 * 3_600),
    /** Of agents and places; the star keeps their keys together. */
    MINUTES_OF_PEOPLE("1m*", 60, 2 * 3_600),
    HOURS("1h", 3_600, 3 * 86_400),
    DAYS("1d", 86_400, 400 * 86_400);

    private static final int DIGITS = 10;

    private final String label;
    private final long seconds;
    private final long keptSeconds;

    Resolution(String label, long seconds, long keptSeconds) {
        this.label = label;
        this.seconds = seconds;
        this.keptSeconds = keptSeconds;
    }

    boolean isOf(String group) {
        return switch (this) {
            case MINUTES -> Changes.isOfSegment(group);
            case MINUTES_OF_PEOPLE -> !Changes.isOfSegment(group);
            default -> true;
        };
    }

    /** Where the pane of a moment begins, in Unix seconds. */
    long paneOf(long second) {
        return second - second % seconds;
    }

    /** Panes from then on are kept when the newest event is of this minute. */
    long firstKept(long newestMinute) {
        return Math.max(0, newestMinute - seconds - keptSeconds + 1);
    }

    /** What the keys of a pane begin with; they have the order of the panes. */
    String key(long pane) {
        String digits = Long.toString(pane);
        return label + Changes.SEPARATOR + "0".repeat(DIGITS - digits.length()) + digits;
    }
}
