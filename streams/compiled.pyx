# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""The tables of one partition, compiled: what `streams.tables` does in plain Python, and the same to the byte.

`schemas/codec.hpp` reads ordinary records, `compiled.hpp` has the facts of a lead and the sums; here is what touches
Python objects. Leads and rows are held as the changelogs have them: nothing outlives a batch but bytes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from callfunnel.schemas.codec import Rejected
from callfunnel.schemas.events import TYPES, CallEnded, Connect
from callfunnel.schemas.rows import decode_columns, key_head, split_key
from callfunnel.streams import columns, funnel, tables
from callfunnel.streams.panes import pane_start


cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        string_view()
        string_view(const char*, size_t)
        const char* data()
        size_t size()
        cbool empty()
        cbool operator==(string_view)


cdef extern from "compiled.hpp" namespace "callfunnel" nogil:
    const int COLUMNS, BINS, EVENTS, EVENTS_DISQUALIFIED, EVENTS_LOST, MACHINE_ANSWERS
    const int CAMPAIGNS
    const string_view* KIND_NAMES
    const string_view* FIELD_NAMES
    const int KINDS, FIELDS
    cdef enum Kind:
        CONNECT, CALL_ENDED, DISQUALIFIED, LOST

    cdef cppclass Event:
        Event()
        Kind kind
        int64_t at_ms
        string_view event_id, lead_id, call_id, campaign, source, team, agent, location
        cbool machine, has_talk
        double talk_seconds
        string_view hangup_by

    cbool read(string_view, Event&)

    cdef cppclass Delta:
        void add(int, int64_t) except +
        cbool any()

    cdef cppclass Group:
        int rollup
        string_view tail

    cdef cppclass Cell:
        int group, time
        Delta delta

    cdef cppclass Cells:
        size_t size()
        const Cell& operator[](size_t)

    cdef cppclass Counts:
        vector[Group] groups
        vector[int64_t] minutes
        int campaign(string_view, string_view) except +
        int team(string_view, string_view) except +
        int location(string_view) except +
        Delta& at(int, int64_t) except +
        const Cells& summed(const vector[int]&) except +

    cdef cppclass Buffer:
        pass

    string_view added(string_view, const Delta&, const vector[string]&, Buffer&) except +
    string_view or_none(string_view)
    uint32_t murmur2(string_view)

    cdef cppclass Lead:
        void open()
        void open(string_view) except +
        string_view packed(Buffer&) except +
        size_t events()
        cbool has_seen(string_view)
        cbool absorb(const Event&, string_view, uint64_t) except +
        void contribute(int64_t, const vector[int64_t]&, int64_t, Counts&) except +


cdef extern from *:
    const char* CALLFUNNEL_SOURCES

SOURCES = CALLFUNNEL_SOURCES.decode()
"""`agents.choice.digest` when this was built."""

_COLUMNS = (
    *columns.EVENTS, columns.EVENTS_DISQUALIFIED, columns.EVENTS_LOST, columns.MACHINE_ANSWERS,
    columns.DM_HANGUPS, columns.AGENT_HANGUPS, *columns.LEADS, columns.IMPLIED,
    *columns.ATTEMPT_BINS, *columns.CONNECT_BINS, columns.ATTEMPT_MS, columns.CONNECT_MS,
    columns.AWAITED, columns.UNCALLED, columns.DIALED_BEFORE_CREATION,
)  # fmt: skip
assert len(_COLUMNS) == COLUMNS and len(columns.BINS) == BINS

cdef vector[string] _names = [f'"{column}"'.encode() for column in _COLUMNS]
cdef vector[int64_t] _bounds_ms = [bound * 1000 for bound in columns.RESPONSE_BOUNDS_SECONDS]
cdef dict _kinds = {cls: cls.rank for cls in TYPES.values()}
assert [cls.rank for cls in TYPES.values()] == list(range(KINDS))
assert list(TYPES) == [KIND_NAMES[i].data()[:KIND_NAMES[i].size()].decode() for i in range(KINDS)]
assert {"type", *(name for cls in TYPES.values() for name in cls.__struct_fields__)} == {
    FIELD_NAMES[i].data()[:FIELD_NAMES[i].size()].decode() for i in range(FIELDS)
}


cdef inline string_view view(bytes data) noexcept:
    return string_view(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline string_view text(object value) except *:
    cdef Py_ssize_t size
    cdef const char* data
    if value is None:
        return string_view()
    data = PyUnicode_AsUTF8AndSize(value, &size)
    return string_view(data, size)


cdef inline bytes as_bytes(string_view data):
    return PyBytes_FromStringAndSize(data.data(), data.size())


cdef Event event_of(object told) except *:
    """What `read` would make of an event that the codec has read; the texts stay the codec's."""
    cdef Event event
    event.kind = _kinds[type(told)]
    event.at_ms = told.at_ms
    event.event_id = text(told.event_id)
    event.lead_id = text(told.lead_id)
    event.call_id = text(told.call_id)
    event.campaign = text(told.campaign)
    event.source = text(told.source)
    event.team = text(told.team)
    event.agent = text(told.agent)
    event.location = text(told.location)
    event.machine = type(told) is Connect and told.answered_by == "machine"
    if type(told) is CallEnded:
        event.has_talk = told.talk_seconds is not None
        event.talk_seconds = told.talk_seconds if event.has_talk else 0.0
        event.hangup_by = text(told.hangup_by)
    return event


cdef class Verdicts:
    """What the records of a batch say: an event each, without a lead's id where it is none, or why it is none."""

    cdef:
        vector[Event] events
        dict rejected
        object _told

    def __init__(self, decoder, list values, list keys, list timestamps):
        cdef:
            Event event
            int64_t earliest_ms, latest_ms
            Py_ssize_t i, max_bytes = decoder.limits.max_bytes
            list odd = []
        if not len(values) == len(keys) == len(timestamps):
            raise ValueError("a batch has a key and a time for each value")
        earliest_ms, latest_ms = decoder.bounds_ms(timestamps)
        self.events.resize(len(values))
        for i in range(len(values)):
            value, key = values[i], keys[i]
            if (
                value is not None
                and len(<bytes>value) <= max_bytes
                and read(view(value), event)
                and earliest_ms <= event.at_ms <= latest_ms
                and (key is None or view(key) == event.lead_id)
            ):
                self.events[i] = event
            else:
                odd.append(i)
        told = decoder.decode_all([values[i] for i in odd], [keys[i] for i in odd], [timestamps[i] for i in odd])
        self.rejected = {}
        for i, verdict in zip(odd, told):
            if type(verdict) is Rejected:
                self.rejected[i] = verdict
            else:
                self.events[i] = event_of(verdict)
        self._told = tuple(values), told  # the texts are theirs


cdef void count_activity(const Event& event, Counts& counts) except *:
    cdef int column
    if event.kind == CALL_ENDED:
        return
    if event.machine:
        column = MACHINE_ANSWERS
    elif event.kind == DISQUALIFIED:
        column = EVENTS_DISQUALIFIED
    elif event.kind == LOST:
        column = EVENTS_LOST
    else:
        column = EVENTS + <int>event.kind
    counts.at(counts.campaign(or_none(event.campaign), or_none(event.source)), event.at_ms).add(column, 1)
    counts.at(counts.team(or_none(event.team), or_none(event.agent)), event.at_ms).add(column, 1)
    counts.at(counts.location(or_none(event.location)), event.at_ms).add(column, 1)


class Tables(tables.Tables):
    """As `streams.tables.Tables`."""

    @staticmethod
    def murmur2_of_all(keys):
        """As `streams.partitioning.murmur2_of_all`."""
        return {key: murmur2(view(key)) for key in keys}

    def new_funnel(self, resolutions, zone):
        return Funnel(resolutions, zone)

    def decode(self, list values, list keys, list timestamps):
        return Verdicts(self._decoder, values, keys, timestamps)

    def refuse(self, Verdicts verdicts, indices, why):
        for i in indices:
            verdicts.rejected.setdefault(i, why)
            verdicts.events[<size_t>i] = Event()

    def new_leads(self, Verdicts verdicts, list keys):
        cdef:
            dict leads = self.leads
            set ids = set()
            size_t i
        for i in range(verdicts.events.size()):
            if verdicts.events[i].lead_id.empty():
                continue
            lead_id = keys[i] or as_bytes(verdicts.events[i].lead_id)
            if lead_id not in leads:
                ids.add(lead_id)
        return ids

    def add(self, Verdicts verdicts, list keys, list timestamps, dict away, int64_t watermark_ms):
        cdef:
            Counts counts
            Lead lead, former
            const Event* event
            Buffer buffer
            dict leads = self.leads, opened = {}
            list ids = [], changes = [], rejected = list(verdicts.rejected.items()), foreign = []
            vector[int] first, last, following
            int i, at
            uint64_t call_key
            int64_t hangup_ms = self._fold.hangup_ms, late_ms = self._fold.late_ms
            size_t most_events = self._fold.lead_events
            int duplicates = 0, late = 0
            cbool changed
            bytes lead_id, record, packed, mark

        # By lead, each with its events in their order.
        following.resize(verdicts.events.size(), -1)
        for i in range(<int>verdicts.events.size()):
            event = &verdicts.events[i]
            if event.lead_id.empty():
                continue
            lead_id = keys[i] or as_bytes(event.lead_id)
            found = opened.get(lead_id)
            if found is not None:
                at = found
                following[last[at]] = i
                last[at] = i
                continue
            if lead_id in away:
                foreign.append((i, away[lead_id]))
                continue
            opened[lead_id] = len(ids)
            ids.append(lead_id)
            first.push_back(i)
            last.push_back(i)

        for at, lead_id in enumerate(ids):
            record = leads.get(lead_id)
            if record is None:
                lead.open()
            else:
                lead.open(view(record))
            changed = False
            i = first[at]
            while i >= 0:
                event = &verdicts.events[i]
                mark = xxh3_64_digest(as_bytes(event.event_id))
                if lead.has_seen(view(mark)):
                    duplicates += 1
                elif lead.events() >= most_events:
                    rejected.append((i, tables.crowded(most_events)))
                else:
                    watermark_ms = max(watermark_ms, event.at_ms)
                    late += <int64_t>timestamps[i] > event.at_ms + late_ms
                    call_key = 0
                    if event.kind > CONNECT and not event.call_id.empty():
                        call_key = xxh3_64_intdigest(as_bytes(event.call_id))
                    changed |= lead.absorb(event[0], view(mark), call_key)
                    count_activity(event[0], counts)
                i = following[i]
            if changed:
                if record is not None:
                    former.open(view(record))
                    former.contribute(hangup_ms, _bounds_ms, -1, counts)
                lead.contribute(hangup_ms, _bounds_ms, 1, counts)
            packed = as_bytes(lead.packed(buffer))
            if packed != record:
                leads[lead_id] = packed
                changes.append((lead_id, packed))

        rejected.sort(key=_index)
        return tables.Effects(
            funnel=add_counts(self.funnel, counts, watermark_ms),
            leads=changes,
            rejected=rejected,
            foreign=foreign,
            duplicates=duplicates,
            late=late,
            watermark_ms=watermark_ms,
        )


def _index(rejection):
    return rejection[0]


class Funnel(funnel.Funnel):
    """As `streams.funnel.Funnel`; the rows are held as they are in the changelog."""

    def restore(self, rows):
        for key, row in rows.items():
            resolution, pane, tail = split_key(key)
            self._panes[resolution].setdefault(pane, {})[tail] = row

    def rows(self):
        rows = super().rows()
        return {key: decode_columns(row) for key, row in rows.items()}


cdef list add_counts(object rows, Counts& counts, int64_t watermark_ms):
    """Add a batch's counts to every row they belong to; the changelog records that say so."""
    cdef:
        list changes = [], tails = [None] * counts.groups.size(), panes
        int64_t watermark = watermark_ms // 1000
        vector[int] pane_of
        const Cells* sums
        const Cell* cell
        size_t i
        bytes head, tail, former, row
        dict held
        string_view sum
        Buffer buffer

    for resolution in rows._resolutions:
        name, kept = resolution.name, rows._panes[resolution.name]
        horizon = funnel.horizon(resolution, watermark)
        indices, panes = {}, []
        pane_of.clear()
        for i in range(counts.minutes.size()):
            pane = pane_start(name, counts.minutes[i], rows._zone)
            if pane <= horizon:
                pane_of.push_back(-1)
                continue
            if pane not in indices:
                indices[pane] = len(panes)
                panes.append((key_head(name, pane), kept.setdefault(pane, {})))
            pane_of.push_back(indices[pane])
        sums = &counts.summed(pane_of)
        for i in range(sums.size()):
            cell = &(sums[0][i])
            if not cell.delta.any() or (not resolution.length and counts.groups[cell.group].rollup != CAMPAIGNS):
                continue
            head, held = panes[cell.time]
            tail = tails[cell.group]
            if tail is None:
                tail = tails[cell.group] = as_bytes(counts.groups[cell.group].tail)
            former = held.get(tail)
            sum = added(string_view(b"{}", 2) if former is None else view(former), cell.delta, _names, buffer)
            if sum.size() > 2:
                row = as_bytes(sum)
                held[tail] = row
            else:
                row = None
                if former is not None:
                    del held[tail]
            changes.append((head + tail, row))
    changes += rows._expire(watermark)
    return changes
