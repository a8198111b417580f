import com.fasterxml.jackson.annotation.JsonValue;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.MapperFeature;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.PropertyNamingStrategies;
import com.fasterxml.jackson.databind.cfg.CoercionAction;
import com.fasterxml.jackson.databind.cfg.CoercionInputShape;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.type.LogicalType;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.time.OffsetDateTime;
import java.time.format.DateTimeParseException;
import java.util.Arrays;
import java.util.Locale;
import java.util.stream.Stream;

/** The types of events, in the order of the contract. Each of the first six arrives at its stage. */
enum Kind {
    LEAD_CREATED, DIAL, CONNECT, DM_REACHED, QUALIFIED, WON, CALL_ENDED, DISQUALIFIED, LOST;

    @JsonValue
    final String tag = name().toLowerCase(Locale.ROOT);
}

/** What a record says: the fields of `schemas/events.py`. */
record Event(
        String eventId, Kind type, Object occurredAt, String leadId, String callId, Integer schemaVersion,
        String campaign, String source, String location, String team, String agent,
        String answeredBy, Double talkSeconds, String hangupBy,
        Object expectedAmount, Object amount, String currency, String reason) {

    private static final ObjectReader JSON = JsonMapper.builder()
            .propertyNamingStrategy(PropertyNamingStrategies.SNAKE_CASE)
            .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
            .enable(DeserializationFeature.FAIL_ON_NUMBERS_FOR_ENUMS)
            .disable(MapperFeature.ALLOW_COERCION_OF_SCALARS)
            .withCoercionConfig(LogicalType.Textual, texts -> texts
                    .setCoercion(CoercionInputShape.Boolean, CoercionAction.Fail)
                    .setCoercion(CoercionInputShape.Float, CoercionAction.Fail)
                    .setCoercion(CoercionInputShape.Integer, CoercionAction.Fail))
            .build()
            .readerFor(Event.class);
    private static final int LONGEST_TEXT = 64;
    private static final long NEVER = -1;

    /** Null where the record is no event. */
    static Event of(byte[] key, byte[] value) {
        try {
            Event event = value == null ? null : JSON.readValue(value);
            return event != null && event.isValid(key) ? event : null;
        } catch (IOException notJson) {
            return null;
        }
    }

    /** Event time in Unix milliseconds. */
    long atMs() {
        if (occurredAt instanceof Number ms) {
            return ms.longValue();
        }
        try {
            if (occurredAt instanceof String at) {
                return OffsetDateTime.parse(at).toInstant().toEpochMilli();
            }
            return NEVER;
        } catch (DateTimeParseException notTime) {
            return NEVER;
        }
    }

    private boolean isValid(byte[] key) {
        return isText(eventId) && isText(leadId) && type != null && atMs() >= 0
                && (key == null || Arrays.equals(key, leadId.getBytes(StandardCharsets.UTF_8)))
                && (schemaVersion == null || schemaVersion == 1)
                && (talkSeconds == null || talkSeconds >= 0)
                && isAmount(expectedAmount) && isAmount(amount)
                && Stream.of(
                        callId, campaign, source, location, team, agent, answeredBy, hangupBy, currency,
                        reason)
                        .allMatch(text -> text == null || text.isEmpty() || isText(text));
    }

    private static boolean isAmount(Object amount) {
        return amount == null || amount instanceof Number || amount instanceof String text && isText(text);
    }

    private static boolean isText(String text) {
        if (text == null || text.isEmpty() || text.length() > LONGEST_TEXT) {
            return false;
        }
        for (int at = 0; at < text.length(); at++) {
            if (Character.isISOControl(text.charAt(at))) {
                return false;
            }
        }
        return true;
    }
}
