// What `streams.lead`, `counts` and `funnel` do, in C++: the facts of a lead, what they add to the tables, and the sums
// of a batch. Names and meaning are theirs, and the records of leads their bytes; rows hold the same columns in an
// order of their own, and panes are summed up from minutes, without steps. `compiled.pyx` is the way in from Python.

#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "schemas/codec.hpp"

namespace callfunnel {

constexpr int STAGES = 6;
constexpr int BINS = 16;  // of a response time

// In the order of `_COLUMNS` in compiled.pyx.
enum Column : int {
    EVENTS = 0,
    EVENTS_DISQUALIFIED = EVENTS + STAGES,
    EVENTS_LOST,
    MACHINE_ANSWERS,
    DM_HANGUPS,
    AGENT_HANGUPS,
    LEADS,
    IMPLIED = LEADS + STAGES,
    ATTEMPT_BINS,
    CONNECT_BINS = ATTEMPT_BINS + BINS,
    ATTEMPT_MS = CONNECT_BINS + BINS,
    CONNECT_MS,
    AWAITED,
    UNCALLED,
    DIALED_BEFORE_CREATION,
    COLUMNS,
};
static_assert(COLUMNS <= 64, "a bit for each column");

// Text under construction, in memory that is used again and again.
class Buffer {
public:
    string_view view() const { return {memory_.data(), size_}; }
    void clear() { size_ = 0; }
    size_t size() const { return size_; }
    void put(char c) { *room(1) = c; }
    void put(string_view text) { std::memcpy(room(text.size()), text.data(), text.size()); }
    void number(int64_t n) {
        constexpr size_t longest = 20;
        char* at = room(longest);
        size_ -= longest - (std::to_chars(at, at + longest, n).ptr - at);
    }

private:
    std::vector<char> memory_ = std::vector<char>(4096);
    size_t size_ = 0;

    char* room(size_t n) {
        if (size_ + n > memory_.size()) memory_.resize(2 * (size_ + n));
        size_ += n;
        return memory_.data() + size_ - n;
    }
};

inline string_view or_none(string_view value) { return value.empty() ? string_view("none") : value; }

// ---------------------------------------------------------------------------------------------------------------
// What a batch adds

// By column. Response columns are of campaigns alone, and most rows are of agents: they have room when needed.
class Delta {
public:
    uint64_t touched() const { return touched_; }
    int64_t operator[](int column) const {
        return column < ATTEMPT_BINS ? counted_[column] : (*response_)[column - ATTEMPT_BINS];
    }
    void add(int column, int64_t n) {
        touched_ |= uint64_t{1} << column;
        if (column < ATTEMPT_BINS) {
            counted_[column] += n;
            return;
        }
        if (!response_) response_ = std::make_unique<Response>();
        (*response_)[column - ATTEMPT_BINS] += n;
    }
    void add(const Delta& other) {
        for (uint64_t left = other.touched_; left; left &= left - 1) {
            int column = __builtin_ctzll(left);
            add(column, other[column]);
        }
    }
    bool any() const {
        for (uint64_t left = touched_; left; left &= left - 1)
            if ((*this)[__builtin_ctzll(left)]) return true;
        return false;
    }

private:
    using Response = std::array<int64_t, COLUMNS - ATTEMPT_BINS>;

    uint64_t touched_ = 0;
    std::array<int64_t, ATTEMPT_BINS> counted_{};
    std::unique_ptr<Response> response_;
};

struct Group {
    int rollup;
    std::string tail;  // of the keys of its rows: what `schemas.rows.key_tail` makes of it
};

struct Cell {
    int group;
    int time;  // index of a minute where it is counted, of a pane where it is summed up
    Delta delta;

    Cell(int group, int time) : group(group), time(time) {}
};

using Cells = std::deque<Cell>;

// A hash table with open addressing: the standard one takes a piece of memory for each cell.
class CellsByKey {
public:
    Cells cells;

    Delta& at(int group, int time) {
        if (2 * cells.size() >= places_.size()) grow();
        int& place = place_of(group, time);
        if (place < 0) {
            place = (int)cells.size();
            cells.emplace_back(group, time);
        }
        return cells[place].delta;
    }

private:
    std::vector<int> places_;  // indices of cells, -1 for none; a power of two of them

    int& place_of(int group, int time) {
        uint64_t key = (uint64_t)group << 32 | (uint32_t)time;
        size_t mask = places_.size() - 1, at = key * 0x9E3779B97F4A7C15 >> 32 & mask;
        while (places_[at] >= 0) {
            const Cell& cell = cells[places_[at]];
            if (cell.group == group && cell.time == time) break;
            at = at + 1 & mask;
        }
        return places_[at];
    }
    void grow() {
        places_.assign(std::max<size_t>(1024, 2 * places_.size()), -1);
        for (size_t i = 0; i < cells.size(); i++) place_of(cells[i].group, cells[i].time) = (int)i;
    }
};

enum Rollup : int { CAMPAIGNS, TEAMS, LOCATIONS };
constexpr string_view ROLLUPS[] = {"\"campaign+source\"", "\"team+agent\"", "\"location\""};

class Counts {
public:
    std::vector<Group> groups;
    std::vector<int64_t> minutes;  // starts, in Unix seconds

    int campaign(string_view campaign, string_view source) { return group(CAMPAIGNS, campaign, source); }
    int team(string_view team, string_view agent) { return group(TEAMS, team, agent); }
    int location(string_view location) { return group(LOCATIONS, location); }

    // What is counted of a group in the minute of `ms`.
    Delta& at(int group, int64_t ms) {
        int64_t start = ms / 60'000 * 60;
        if (minutes.empty() || start != minutes[minute_]) {
            auto [found, is_new] = minute_index_.try_emplace(start, (int)minutes.size());
            if (is_new) minutes.push_back(start);
            minute_ = found->second;
        }
        return counted_.at(group, minute_);
    }

    // By group and pane, until it is asked again; `pane_of` has the index of each minute's pane, -1 for what is not wanted.
    const Cells& summed(const std::vector<int>& pane_of) {
        bool each_its_own = true;
        for (size_t minute = 0; minute < pane_of.size(); minute++) each_its_own &= pane_of[minute] == (int)minute;
        if (each_its_own) return counted_.cells;
        sums_ = CellsByKey();
        for (const Cell& cell : counted_.cells)
            if (pane_of[cell.time] >= 0) sums_.at(cell.group, pane_of[cell.time]).add(cell.delta);
        return sums_.cells;
    }

private:
    CellsByKey counted_, sums_;
    std::unordered_map<std::string, int> group_index_;
    std::unordered_map<int64_t, int> minute_index_;
    int minute_ = 0;  // the last that was asked for
    std::string tail_;
    struct Asked {
        std::string first, second;
        int group = -1;
    };
    std::array<Asked, 3> asked_;  // by rollup, the last that was asked for: what follows often asks the same

    // As in JSON; there are no control characters: the gate refuses them.
    void escape(string_view value) {
        auto special = [](char c) { return c == '"' || c == '\\'; };
        tail_ += ",\"";
        if (std::none_of(value.begin(), value.end(), special)) {
            tail_ += value;
        } else {
            for (char c : value) {
                if (special(c)) tail_ += '\\';
                tail_ += c;
            }
        }
        tail_ += '"';
    }

    int group(Rollup rollup, string_view first, string_view second = {}) {
        Asked& asked = asked_[rollup];
        if (asked.group >= 0 && asked.first == first && asked.second == second) return asked.group;
        tail_ = ROLLUPS[rollup];
        escape(first);
        if (rollup != LOCATIONS) escape(second);
        tail_ += ']';
        auto [found, is_new] = group_index_.try_emplace(tail_, (int)groups.size());
        if (is_new) groups.push_back({rollup, tail_});
        asked = {std::string(first), std::string(second), found->second};
        return found->second;
    }
};

// The row `{"events_dialed":7,…}` after adding; columns that come to 0 are left out. `names` are quoted.
inline string_view added(
    string_view row, const Delta& delta, const std::vector<std::string>& names, Buffer& sum
) {
    sum.clear();
    sum.put('{');
    auto give = [&sum](string_view name, int64_t n) {
        if (n == 0) return;
        if (sum.size() > 1) sum.put(',');
        sum.put(name);
        sum.put(':');
        sum.number(n);
    };
    auto check = [](bool holds) {
        if (!holds) throw std::invalid_argument("not a row of the funnel");
    };
    check(row.size() >= 2 && row.front() == '{' && row.back() == '}');
    uint64_t left = delta.touched();
    for (size_t at = 1, end; at + 1 < row.size(); at = end + 1) {
        size_t colon = row.find(':', at);
        check(colon != row.npos);
        string_view name = row.substr(at, colon - at);
        end = std::min(row.find(',', colon), row.size() - 1);
        int64_t n = 0;
        auto [after, error] = std::from_chars(row.data() + colon + 1, row.data() + end, n);
        check(error == std::errc() && after == row.data() + end);
        for (uint64_t other = left; other; other &= other - 1) {
            int column = __builtin_ctzll(other);
            if (names[column] == name) {
                n += delta[column];
                left &= ~(uint64_t{1} << column);
                break;
            }
        }
        give(name, n);
    }
    for (; left; left &= left - 1) {
        int column = __builtin_ctzll(left);
        give(names[column], delta[column]);
    }
    sum.put('}');
    return sum.view();
}

// As Kafka's Java client computes it, with the sign bit cleared.
inline uint32_t murmur2(string_view key) {
    constexpr uint32_t m = 0x5BD1E995;
    size_t left = key.size();
    uint32_t h = 0x9747B28C ^ (uint32_t)left;
    const unsigned char* p = (const unsigned char*)key.data();
    auto word = [&p](size_t n) {
        uint32_t k = 0;
        for (size_t i = 0; i < n; i++) k |= (uint32_t)p[i] << 8 * i;
        return k;
    };
    for (; left >= 4; p += 4, left -= 4) {
        uint32_t k = word(4) * m;
        h = h * m ^ (k ^ k >> 24) * m;
    }
    if (left) h = (h ^ word(left)) * m;
    h = (h ^ h >> 13) * m;
    return (h ^ h >> 15) & 0x7FFFFFFF;
}

// ---------------------------------------------------------------------------------------------------------------
// The facts of a lead

struct At {
    int64_t ms = 0;
    int64_t rank = 0;
    string_view id;

    static At of(const Event& event) { return {event.at_ms, event.kind, event.event_id}; }
    int compare(const At& other) const {
        if (ms != other.ms) return ms < other.ms ? -1 : 1;
        if (rank != other.rank) return rank < other.rank ? -1 : 1;
        return id.compare(other.id);
    }
};

struct First {
    bool known = false;
    At at;
    string_view value;
};

struct Arrival {
    bool known = false;
    At at;
    string_view team, agent;

    bool operator<(const Arrival& other) const {
        int order = at.compare(other.at);
        if (!order) order = team.compare(other.team);
        return order ? order < 0 : agent < other.agent;
    }
};

struct Reach {
    Arrival arrival;
    string_view campaign, source, location;
};

struct End {
    bool known = false;
    At at;
    bool has_talk = false;
    double talk_seconds = 0;
    bool has_hangup = false;
    string_view hangup_by;
};

struct Call {
    uint64_t key = 0;
    Reach reach;
    End end;
    bool verdict = false;

    // The column that counts the call when it ended at once; -1 when it did not.
    int hangup(int64_t hangup_ms) const {
        if (!reach.arrival.known || !end.known || verdict) return -1;
        int64_t after = end.at.ms - reach.arrival.at.ms;
        bool soon = after >= 0 && after < hangup_ms;
        if (!soon && (!end.has_talk || end.talk_seconds * 1000 >= (double)hangup_ms)) return -1;
        return end.has_hangup && end.hangup_by == "agent" ? AGENT_HANGUPS : DM_HANGUPS;
    }
};

// msgpack, as much as a lead's record has of it
class Reader {
public:
    explicit Reader(string_view data) : p_((const uint8_t*)data.data()), end_(p_ + data.size()) {}

    bool is_at_end() const { return p_ == end_; }
    bool nil() {
        if (peek() != 0xc0) return false;
        p_++;
        return true;
    }
    bool boolean() {
        uint8_t tag = take();
        if ((tag & 0xfe) != 0xc2) bad();
        return tag == 0xc3;
    }
    uint64_t integer() {
        uint8_t tag = take();
        if (tag < 0x80) return tag;
        if (tag < 0xcc || tag > 0xcf) bad();
        return number(1 << (tag - 0xcc));
    }
    double real() {
        if (take() != 0xcb) bad();
        uint64_t bits = number(8);
        double value;
        std::memcpy(&value, &bits, 8);
        return value;
    }
    string_view text() {
        uint8_t tag = take();
        if ((tag & 0xe0) == 0xa0) return bytes(tag & 0x1f);
        if (tag < 0xd9 || tag > 0xdb) bad();
        return bytes(number(1 << (tag - 0xd9)));
    }
    string_view binary() {
        uint8_t tag = take();
        if (tag < 0xc4 || tag > 0xc6) bad();
        return bytes(number(1 << (tag - 0xc4)));
    }
    void array(size_t size) {
        uint8_t tag = take();
        if ((tag & 0xf0) == 0x90 ? (size_t)(tag & 0x0f) != size : tag != 0xdc || number(2) != size) bad();
    }
    size_t map() {
        uint8_t tag = take();
        if ((tag & 0xf0) == 0x80) return tag & 0x0f;
        if (tag != 0xde && tag != 0xdf) bad();
        size_t size = number(tag == 0xde ? 2 : 4);
        if (size > (size_t)(end_ - p_)) bad();
        return size;
    }

    [[noreturn]] static void bad() { throw std::invalid_argument("not a lead's record"); }

private:
    const uint8_t *p_, *end_;

    uint8_t peek() const {
        if (p_ == end_) bad();
        return *p_;
    }
    uint8_t take() {
        uint8_t byte = peek();
        p_++;
        return byte;
    }
    uint64_t number(size_t size) {
        uint64_t value = 0;
        for (uint8_t byte : bytes(size)) value = value << 8 | byte;
        return value;
    }
    string_view bytes(size_t size) {
        if ((size_t)(end_ - p_) < size) bad();
        string_view data((const char*)p_, size);
        p_ += size;
        return data;
    }
};

class Writer {
public:
    explicit Writer(Buffer& data) : data_(data) {}

    void nil() { byte(0xc0); }
    void boolean(bool value) { byte(value ? 0xc3 : 0xc2); }
    void integer(uint64_t value) {
        if (value < 0x80) byte((uint8_t)value);
        else sized(0xcc, value, value <= 0xff ? 0 : value <= 0xffff ? 1 : value <= 0xffffffff ? 2 : 3);
    }
    void real(double value) {
        uint64_t bits;
        std::memcpy(&bits, &value, 8);
        tagged(0xcb, bits, 8);
    }
    void text(string_view value) {
        if (value.size() < 32) byte((uint8_t)(0xa0 | value.size()));
        else length(0xd9, value.size());
        data_.put(value);
    }
    void binary(string_view value, string_view more) {
        length(0xc4, value.size() + more.size());
        data_.put(value);
        data_.put(more);
    }
    void array(size_t size) { byte((uint8_t)(0x90 | size)); }  // none has more than 15
    void map(size_t size) {
        if (size < 16) byte((uint8_t)(0x80 | size));
        else if (size <= 0xffff) tagged(0xde, size, 2);
        else tagged(0xdf, size, 4);
    }

private:
    Buffer& data_;

    void byte(uint8_t value) { data_.put((char)value); }
    void tagged(uint8_t tag, uint64_t value, int size) {
        char bytes[9] = {(char)tag};
        for (int i = 0; i < size; i++) bytes[size - i] = (char)(value >> 8 * i);
        data_.put(string_view(bytes, 1 + size));
    }
    void sized(uint8_t tag, uint64_t value, int power) { tagged((uint8_t)(tag + power), value, 1 << power); }
    void length(uint8_t tag, size_t size) { sized(tag, size, size <= 0xff ? 0 : size <= 0xffff ? 1 : 2); }
};

// Its texts point into its record and into the events it has absorbed.
class Lead {
public:
    void open() { *this = Lead(); }
    void open(string_view record) {
        open();
        Reader from(record);
        from.array(12);
        seen_ = from.binary();
        if (seen_.size() % 8) Reader::bad();
        closed_ = from.boolean();
        for (First* first : {&campaign_, &source_, &location_}) {
            if (from.nil()) continue;
            from.array(4);
            first->known = true;
            first->at = at(from);
            first->value = from.text();
        }
        for (Arrival& arrival : arrivals_) {
            if (from.nil()) continue;
            from.array(5);
            arrival = arrived(from);
        }
        calls_.resize(from.map());
        for (Call& call : calls_) {
            call.key = from.integer();
            from.array(3);
            if (!from.nil()) {
                from.array(8);
                call.reach.arrival = arrived(from);
                for (string_view* value : {&call.reach.campaign, &call.reach.source, &call.reach.location})
                    *value = from.text();
            }
            if (!from.nil()) {
                from.array(5);
                End& end = call.end;
                end.known = true;
                end.at = at(from);
                end.has_talk = !from.nil();
                if (end.has_talk) end.talk_seconds = from.real();
                end.has_hangup = !from.nil();
                if (end.has_hangup) end.hangup_by = from.text();
            }
            call.verdict = from.boolean();
        }
        if (!from.is_at_end()) Reader::bad();
    }

    string_view packed(Buffer& data) const {
        data.clear();
        Writer to(data);
        to.array(12);
        to.binary(seen_, newly_seen_);
        to.boolean(closed_);
        for (const First* first : {&campaign_, &source_, &location_}) {
            if (!first->known) {
                to.nil();
                continue;
            }
            to.array(4);
            put(to, first->at);
            to.text(first->value);
        }
        for (const Arrival& arrival : arrivals_) {
            if (!arrival.known) {
                to.nil();
                continue;
            }
            to.array(5);
            put(to, arrival);
        }
        to.map(calls_.size());
        for (const Call& call : calls_) {
            to.integer(call.key);
            to.array(3);
            if (call.reach.arrival.known) {
                to.array(8);
                put(to, call.reach.arrival);
                for (string_view value : {call.reach.campaign, call.reach.source, call.reach.location})
                    to.text(value);
            } else {
                to.nil();
            }
            if (call.end.known) {
                to.array(5);
                put(to, call.end.at);
                if (call.end.has_talk) to.real(call.end.talk_seconds);
                else to.nil();
                if (call.end.has_hangup) to.text(call.end.hangup_by);
                else to.nil();
            } else {
                to.nil();
            }
            to.boolean(call.verdict);
        }
        return data.view();
    }

    size_t events() const { return (seen_.size() + newly_seen_.size()) / 8; }

    bool has_seen(string_view fingerprint) const {
        uint64_t wanted = number_of(fingerprint.data());
        for (string_view seen : {seen_, string_view(newly_seen_)})
            for (size_t i = 0; i < seen.size(); i += 8)
                if (number_of(seen.data() + i) == wanted) return true;
        return false;
    }

    // Take in one event that was not seen before, with its fingerprint and its call's. True when the lead's
    // contributions may have changed.
    bool absorb(const Event& event, string_view fingerprint, uint64_t call_key) {
        newly_seen_ += fingerprint;
        At at = At::of(event);
        bool changed = false;
        changed |= earliest(campaign_, at, event.campaign);
        changed |= earliest(source_, at, event.source);
        changed |= earliest(location_, at, event.location);
        bool of_call = event.kind >= DM_REACHED && event.kind <= DISQUALIFIED && !event.call_id.empty();
        if (of_call) {
            changed |= absorb_call(event, call_key);
            if (event.kind == DM_REACHED) return changed;
        }
        if ((event.kind == DISQUALIFIED || event.kind == LOST || event.kind == WON) && !closed_) {
            closed_ = true;
            changed = true;
        }
        if (event.kind >= STAGES || event.machine) return changed;
        Arrival& first = arrivals_[event.kind];
        if (first.known && at.compare(first.at) > 0) return changed;
        first = arrival_of(event);
        return true;
    }

    // Count `n` times what the lead adds to the leads, hang-up and response columns; -1 takes it back.
    void contribute(int64_t hangup_ms, const std::vector<int64_t>& bounds_ms, int64_t n, Counts& counts) const {
        int campaign = counts.campaign(or_none(campaign_.value), or_none(source_.value));
        int location = counts.location(or_none(location_.value));

        Arrival reached = arrivals_[DM_REACHED], void_;
        for (const Call& call : calls_) {
            const Arrival& reach = call.reach.arrival;
            if (!reach.known) continue;
            int hangup = call.hangup(hangup_ms);
            if (hangup >= 0) {
                int64_t ms = reach.at.ms;
                counts.at(counts.campaign(call.reach.campaign, call.reach.source), ms).add(hangup, n);
                counts.at(counts.team(reach.team, reach.agent), ms).add(hangup, n);
                counts.at(counts.location(call.reach.location), ms).add(hangup, n);
            }
            Arrival& first = hangup == DM_HANGUPS ? void_ : reached;
            if (!first.known || reach.at.compare(first.at) <= 0) first = reach;
        }

        const Arrival* arrival = nullptr;
        const Arrival* placed = nullptr;
        std::array<Delta*, 3> places{};
        bool called = false;
        for (int stage = WON; stage >= CREATED; stage--) {
            bool implied = true;
            const Arrival& first = stage == DM_REACHED ? reached : arrivals_[stage];
            if (first.known && (!arrival || first < *arrival)) {
                arrival = &first;
                implied = false;
            }
            if (stage == CONNECT && void_.known && (!arrival || void_ < *arrival)) {
                arrival = &void_;
                implied = true;
            }
            if (!arrival) continue;
            called |= stage == DIAL;
            if (arrival != placed) {  // an implied arrival is where the one that implies it is
                placed = arrival;
                int64_t ms = arrival->at.ms;
                places = {
                    &counts.at(campaign, ms),
                    &counts.at(counts.team(arrival->team, arrival->agent), ms),
                    &counts.at(location, ms),
                };
            }
            for (Delta* place : places) {
                place->add(LEADS + stage, n);
                if (implied) place->add(IMPLIED, n);
            }
        }

        if (!arrivals_[CREATED].known) return;
        int64_t created_ms = arrivals_[CREATED].at.ms;
        const Arrival &dialed = arrivals_[DIAL], &connected = arrivals_[CONNECT];
        Delta& response = counts.at(campaign, created_ms);
        if (dialed.known && dialed.at.ms < created_ms) {
            response.add(DIALED_BEFORE_CREATION, n);
            return;
        }
        response.add(AWAITED, n);
        auto bin_of = [&bounds_ms](int64_t ms) {
            int bin = 0;
            while (bin < (int)bounds_ms.size() && bounds_ms[bin] < ms) bin++;
            return bin;
        };
        if (dialed.known) {
            int64_t response_ms = dialed.at.ms - created_ms;
            response.add(ATTEMPT_BINS + bin_of(response_ms), n);
            response.add(ATTEMPT_MS, n * response_ms);
        }
        if (connected.known && connected.at.ms >= created_ms) {
            int64_t response_ms = connected.at.ms - created_ms;
            response.add(CONNECT_BINS + bin_of(response_ms), n);
            response.add(CONNECT_MS, n * response_ms);
        }
        if (!called && !closed_) response.add(UNCALLED, n);
    }

private:
    string_view seen_ = "";
    std::string newly_seen_;
    bool closed_ = false;
    First campaign_, source_, location_;
    std::array<Arrival, STAGES> arrivals_;
    std::vector<Call> calls_;

    static uint64_t number_of(const char* fingerprint) {
        uint64_t number;
        std::memcpy(&number, fingerprint, 8);
        return number;
    }
    static At at(Reader& from) {
        At at;
        at.ms = (int64_t)from.integer();
        at.rank = (int64_t)from.integer();
        at.id = from.text();
        return at;
    }
    static Arrival arrived(Reader& from) {
        Arrival arrival;
        arrival.known = true;
        arrival.at = at(from);
        arrival.team = from.text();
        arrival.agent = from.text();
        return arrival;
    }
    static void put(Writer& to, const At& at) {
        to.integer((uint64_t)at.ms);
        to.integer((uint64_t)at.rank);
        to.text(at.id);
    }
    static void put(Writer& to, const Arrival& arrival) {
        put(to, arrival.at);
        to.text(arrival.team);
        to.text(arrival.agent);
    }
    static Arrival arrival_of(const Event& event) {
        return {true, At::of(event), or_none(event.team), or_none(event.agent)};
    }
    static bool earliest(First& first, const At& at, string_view value) {
        if (value.empty() || (first.known && at.compare(first.at) > 0)) return false;
        first = {true, at, value};
        return true;
    }

    bool absorb_call(const Event& event, uint64_t key) {
        At at = At::of(event);
        Call* call = nullptr;
        for (Call& other : calls_)
            if (other.key == key) call = &other;
        if (!call) {
            calls_.emplace_back();
            call = &calls_.back();
            call->key = key;
        }
        if (event.kind == DM_REACHED) {
            if (call->reach.arrival.known && call->reach.arrival.at.compare(at) < 0) return false;
            call->reach = {
                arrival_of(event), or_none(event.campaign), or_none(event.source), or_none(event.location)};
            return true;
        }
        if (event.kind == CALL_ENDED) {
            End& end = call->end;
            if (end.known && end.at.compare(at) < 0) return false;
            end = {true, at, event.has_talk, event.talk_seconds, !event.hangup_by.empty(), event.hangup_by};
        } else {
            if (call->verdict) return false;
            call->verdict = true;
        }
        return call->reach.arrival.known;
    }
};

}  // namespace callfunnel
