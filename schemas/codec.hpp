// What `schemas.codec` says of ordinary records, in C++. It reads only what is an event beyond doubt, and then the
// fields are those that the codec gives; whatever else there is, refusals included, it leaves to the codec.

#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace callfunnel {

using std::string_view;

// The types by their rank.
enum Kind : int { CREATED, DIAL, CONNECT, DM_REACHED, QUALIFIED, WON, CALL_ENDED, DISQUALIFIED, LOST, KINDS };
constexpr string_view KIND_NAMES[KINDS] = {
    "lead_created", "dial", "connect", "dm_reached", "qualified", "won", "call_ended", "disqualified", "lost"};

// Of an event of any type. From EVENT_ID to LOCATION they are the identities and dimensions that every type may have.
enum Field : int {
    EVENT_ID, LEAD_ID, CALL_ID, CAMPAIGN, SOURCE, TEAM, AGENT, LOCATION, REASON,
    TYPE, OCCURRED_AT, SCHEMA_VERSION, ANSWERED_BY, TALK_SECONDS, HANGUP_BY, AMOUNT, EXPECTED_AMOUNT, CURRENCY,
    FIELDS
};
constexpr string_view FIELD_NAMES[FIELDS] = {
    "event_id", "lead_id", "call_id", "campaign", "source", "team", "agent", "location", "reason",
    "type", "occurred_at", "schema_version", "answered_by", "talk_seconds", "hangup_by", "amount", "expected_amount",
    "currency"};

// The least whole number that is a time: smaller ones are seconds.
constexpr int64_t FIRST_MS = 100'000'000'000;

// As much of an event as the tables need. An empty text is a missing field; texts stay where they were read.
struct Event {
    Kind kind = CREATED;
    int64_t at_ms = -1;
    string_view event_id, lead_id, call_id, campaign, source, team, agent, location;
    bool machine = false;
    bool has_talk = false;
    double talk_seconds = 0;
    string_view hangup_by;
};

// A value that is not nested, or null, which means that there is none.
struct Value {
    enum Type : uint8_t { NONE, TEXT, NUMBER, BOOLEAN } type = NONE;
    uint8_t decimals = 0;  // of a number
    int64_t unscaled = 0;  // a number without its point
    int characters = 0;    // of a text
    string_view text;

    bool is(string_view word) const { return type == TEXT && text == word; }
    bool is_label() const { return type == NONE || (type == TEXT && characters <= 64); }
};

constexpr std::array<bool, 256> IS_TEXT = [] {
    std::array<bool, 256> is_text{};
    for (int c = ' '; c < 0x7f; c++) is_text[c] = c != '"' && c != '\\';
    return is_text;
}();

// Reads JSON, as much as an ordinary record has of it: no escapes, no exponents, nothing negative, nothing nested.
class Scanner {
public:
    explicit Scanner(string_view json) : p_(json.data()), end_(p_ + json.size()) {}

    bool token(char c) {
        skip_space();
        if (p_ == end_ || *p_ != c) return false;
        p_++;
        return true;
    }
    bool is_at_end() {
        skip_space();
        return p_ == end_;
    }
    bool text(Value& value) {
        if (!token('"')) return false;
        const char *start = p_, *p = p_;
        int more = 0;  // bytes than characters
        for (;;) {
            while (p != end_ && IS_TEXT[(unsigned char)*p]) p++;
            if (p == end_) return false;
            if (*p == '"') break;
            size_t size = size_beyond_ascii(p);
            if (!size) return false;
            p += size;
            more += (int)size - 1;
        }
        value.type = Value::TEXT;
        value.text = {start, (size_t)(p - start)};
        value.characters = (int)value.text.size() - more;
        p_ = p + 1;
        return true;
    }
    bool value(Value& value) {
        skip_space();
        if (p_ == end_) return false;
        switch (*p_) {
        case '"': return text(value);
        case 'n': return word("null");
        case 't': value.type = Value::BOOLEAN; return word("true");
        case 'f': value.type = Value::BOOLEAN; return word("false");
        default: return number(value);
        }
    }

private:
    const char *p_, *end_;

    static bool is_digit(char c) { return c >= '0' && c <= '9'; }

    void skip_space() {
        while (p_ != end_ && *p_ <= ' ' && (*p_ == ' ' || *p_ == '\n' || *p_ == '\r' || *p_ == '\t')) p_++;
    }
    bool word(string_view word) {
        if (string_view(p_, end_ - p_).substr(0, word.size()) != word) return false;
        p_ += word.size();
        return true;
    }
    // Up to 15 digits: so many a double holds, and so is their quotient by a power of ten as near as can be.
    bool number(Value& value) {
        const char* start = p_;
        value.type = Value::NUMBER;
        int digits = 0;
        for (; p_ != end_ && is_digit(*p_) && digits <= 15; digits++)
            value.unscaled = value.unscaled * 10 + (*p_++ - '0');
        if (!digits || (digits > 1 && *start == '0')) return false;
        if (p_ != end_ && *p_ == '.') {
            p_++;
            for (; p_ != end_ && is_digit(*p_) && digits <= 15; digits++, value.decimals++)
                value.unscaled = value.unscaled * 10 + (*p_++ - '0');
            if (!value.decimals) return false;
        }
        return digits <= 15;  // what follows, an exponent say, is for the caller, who wants a comma
    }
    // The bytes of the character there; 0 where it is not UTF-8, or may not be in a text.
    size_t size_beyond_ascii(const char* p) const {
        auto at = [this, p](size_t i) { return p + i < end_ ? (unsigned char)p[i] : 0; };
        unsigned char first = at(0);
        size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
        uint32_t code = first & (0xff >> (size + 1));
        for (size_t i = 1; i < size; i++) {
            if ((at(i) & 0xc0) != 0x80) return 0;
            code = code << 6 | (at(i) & 0x3f);
        }
        constexpr uint32_t least[] = {0xa0, 0x800, 0x10000};
        bool is_character = first >= 0xc2 && first <= 0xf4 && code >= least[size - 2] && code <= 0x10ffff
            && code >> 11 != 0x1b;
        bool is_mark = code == 0x61c || code == 0x200e || code == 0x200f
            || (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
        return is_character && !is_mark ? size : 0;
    }
};

// Unix milliseconds, rounded down, of a time like 2025-03-01T09:30:00.123456+01:00; -1 where it is another.
inline int64_t milliseconds_of(string_view time) {
    const char *p = time.data(), *end = p + time.size();
    bool good = true;
    auto number = [&](int digits, int least, int most) {
        int n = 0;
        for (; digits; digits--, p++) {
            good = good && p != end && *p >= '0' && *p <= '9';
            if (!good) return 0;
            n = n * 10 + (*p - '0');
        }
        good = good && n >= least && n <= most;
        return n;
    };
    auto mark = [&](char c) { good = good && p != end && *p++ == c; };

    int year = number(4, 1970, 2100);
    mark('-');
    int month = number(2, 1, 12);
    mark('-');
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (!good) return -1;
    constexpr int days_of[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int day = number(2, 1, days_of[month - 1] + (month == 2 && leap));
    mark('T');
    int hour = number(2, 0, 23);
    mark(':');
    int minute = number(2, 0, 59);
    mark(':');
    int second = number(2, 0, 59);
    int ms = 0;
    if (p != end && *p == '.') {
        int digits = 0;
        for (p++; p != end && *p >= '0' && *p <= '9'; p++, digits++)
            if (digits < 3) ms = ms * 10 + (*p - '0');
        if (!digits || digits > 6) return -1;
        for (; digits < 3; digits++) ms *= 10;
    }
    int ahead = 0;  // of UTC, in minutes
    if (p != end && (*p == '+' || *p == '-')) {
        int sign = *p++ == '+' ? 1 : -1;
        ahead = 60 * number(2, 0, 23);
        mark(':');
        ahead = sign * (ahead + number(2, 0, 59));
    } else {
        mark('Z');
    }
    if (!good || p != end) return -1;
    int days = 365 * (year - 1970) + (year - 1969) / 4 - (year - 1901) / 100 + (year - 1601) / 400 + day - 1;
    for (int before = 1; before < month; before++) days += days_of[before - 1] + (before == 2 && leap);
    return (((days * 24LL + hour) * 60 + minute - ahead) * 60 + second) * 1000 + ms;
}

inline int place_of(string_view name, const string_view* names, int n) {
    int place = 0;
    while (place < n && (name.size() != names[place].size() || name[0] != names[place][0] || name != names[place]))
        place++;
    return place;
}

// False where it has to be asked what the record says. Whether its time and its key are right is not looked at.
inline bool read(string_view json, Event& event) {
    std::array<Value, FIELDS> given;
    Scanner from(json);
    if (!from.token('{')) return false;
    do {
        Value name, value;
        if (!from.text(name) || !from.token(':') || !from.value(value)) return false;
        int field = place_of(name.text, FIELD_NAMES, FIELDS);
        if (field < FIELDS) given[field] = value;  // of a repeated key the last value counts
    } while (from.token(','));
    if (!from.token('}') || !from.is_at_end()) return false;

    int kind = place_of(given[TYPE].text, KIND_NAMES, KINDS);
    if (kind == KINDS) return false;
    event = Event();
    event.kind = (Kind)kind;

    for (int field = EVENT_ID; field <= LOCATION; field++)
        if (!given[field].is_label()) return false;
    event.event_id = given[EVENT_ID].text;
    event.lead_id = given[LEAD_ID].text;
    if (event.event_id.empty() || event.lead_id.empty()) return false;
    event.call_id = given[CALL_ID].text;
    event.campaign = given[CAMPAIGN].text;
    event.source = given[SOURCE].text;
    event.team = given[TEAM].text;
    event.agent = given[AGENT].text;
    event.location = given[LOCATION].text;

    const Value& version = given[SCHEMA_VERSION];
    if (version.type != Value::NONE && !(version.type == Value::NUMBER && version.unscaled == 1 && !version.decimals))
        return false;

    const Value& at = given[OCCURRED_AT];
    if (at.type == Value::TEXT) event.at_ms = milliseconds_of(at.text);
    else if (at.type == Value::NUMBER && !at.decimals && at.unscaled >= FIRST_MS) event.at_ms = at.unscaled;
    if (event.at_ms < 0) return false;

    if (kind == CONNECT) {
        const Value& by = given[ANSWERED_BY];
        event.machine = by.is("machine");
        return event.machine || by.type == Value::NONE || by.is("human");
    }
    if (kind == CALL_ENDED) {
        const Value &talk = given[TALK_SECONDS], &by = given[HANGUP_BY];
        event.has_talk = talk.type == Value::NUMBER;
        double scale = 1;
        for (int left = talk.decimals; left; left--) scale *= 10;
        event.talk_seconds = (double)talk.unscaled / scale;
        event.hangup_by = by.text;
        return (event.has_talk || talk.type == Value::NONE)
            && (by.type == Value::NONE || by.is("customer") || by.is("agent") || by.is("system"));
    }
    if (kind == QUALIFIED || kind == WON)  // sums of money are the codec's
        return given[AMOUNT].type == Value::NONE && given[EXPECTED_AMOUNT].type == Value::NONE
            && given[CURRENCY].type == Value::NONE;
    return kind < DISQUALIFIED || given[REASON].is_label();
}

}  // namespace callfunnel
