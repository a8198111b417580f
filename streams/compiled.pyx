# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""The tables of one partition, compiled: what `streams.tables` does in plain Python, and the same to the byte.

`compiled.hpp` has the facts of a lead and the sums; here is what touches Python objects. Leads and rows are held as
the changelogs have them: nothing outlives a batch but bytes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from schemas.codec import Rejected
from schemas.events import TYPES, Envelope
from schemas.rows import decode_columns, key_head, split_key
from streams import columns, funnel, tables
from streams.panes import pane_start


cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        string_view()
        string_view(const char*, size_t)
        const char* data()
        size_t size()


cdef extern from "compiled.hpp" namespace "callfunnel" nogil:
    const int COLUMNS, BINS, EVENTS, EVENTS_DISQUALIFIED, EVENTS_LOST, MACHINE_ANSWERS
    const int CAMPAIGNS
    cdef enum Kind:
        CONNECT, CALL_ENDED, DISQUALIFIED, LOST

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

    cdef cppclass At:
        int64_t ms, rank
        string_view id

    cdef cppclass Event:
        Event()
        Kind kind
        At at
        string_view campaign, source, team, agent, location
        cbool machine, of_call, has_talk
        uint64_t call_key
        double talk_seconds
        string_view hangup_by

    cdef cppclass Lead:
        void open()
        void open(string_view) except +
        string_view packed(Buffer&) except +
        size_t events()
        cbool has_seen(string_view)
        cbool absorb(const Event&, string_view) except +
        void contribute(int64_t, const vector[int64_t]&, int64_t, Counts&) except +


cdef extern from *:
    """
    #include <structmember.h>
    // A field of a msgspec Struct without a lookup by name: an event has a dozen that are read.
    static inline Py_ssize_t offset_of(PyObject* member) { return ((PyMemberDescrObject*)member)->d_member->offset; }
    static inline PyObject* field_at(PyObject* owner, Py_ssize_t offset) { return *(PyObject**)((char*)owner + offset); }
    """
    const char* CALLFUNNEL_SOURCES
    Py_ssize_t offset_of(object)
    PyObject* field_at(object, Py_ssize_t)

SOURCES = CALLFUNNEL_SOURCES.decode()
"""`streams.choice.digest` when this was built."""

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

cdef:
    # Where every event has the fields of its envelope.
    Py_ssize_t OCCURRED_AT = offset_of(Envelope.occurred_at)
    Py_ssize_t EVENT_ID = offset_of(Envelope.event_id)
    Py_ssize_t CAMPAIGN = offset_of(Envelope.campaign)
    Py_ssize_t SOURCE = offset_of(Envelope.source)
    Py_ssize_t TEAM = offset_of(Envelope.team)
    Py_ssize_t AGENT = offset_of(Envelope.agent)
    Py_ssize_t LOCATION = offset_of(Envelope.location)
    Py_ssize_t CALL_ID = offset_of(Envelope.call_id)


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


cdef inline object field(object event, Py_ssize_t offset):
    cdef PyObject* value = field_at(event, offset)
    if value == NULL:
        raise AttributeError(f"{type(event)} has a field that is not set")
    return <object>value


cdef Event understood(object event) except *:
    """What a lead and the activity need of an event; its texts stay the event's."""
    cdef Event known
    at = field(event, OCCURRED_AT)
    known.kind = _kinds[type(event)]
    known.at.ms = at if type(at) is int else event.at_ms
    known.at.rank = known.kind
    known.at.id = text(field(event, EVENT_ID))
    known.campaign = text(field(event, CAMPAIGN))
    known.source = text(field(event, SOURCE))
    known.team = text(field(event, TEAM))
    known.agent = text(field(event, AGENT))
    known.location = text(field(event, LOCATION))
    known.machine = known.kind == CONNECT and event.answered_by == "machine"
    call_id = field(event, CALL_ID)
    known.of_call = bool(call_id)
    if known.of_call and known.kind > CONNECT:
        known.call_key = xxh3_64_intdigest(call_id.encode())
    if known.kind == CALL_ENDED:
        talk_seconds = event.talk_seconds
        known.has_talk = talk_seconds is not None
        known.talk_seconds = talk_seconds if known.has_talk else 0.0
        known.hangup_by = text(event.hangup_by)
    return known


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
    counts.at(counts.campaign(or_none(event.campaign), or_none(event.source)), event.at.ms).add(column, 1)
    counts.at(counts.team(or_none(event.team), or_none(event.agent)), event.at.ms).add(column, 1)
    counts.at(counts.location(or_none(event.location)), event.at.ms).add(column, 1)


class Tables(tables.Tables):
    """As `streams.tables.Tables`."""

    @staticmethod
    def murmur2_of_all(keys):
        """As `streams.partitioning.murmur2_of_all`."""
        return {key: murmur2(view(key)) for key in keys}

    def new_funnel(self, resolutions, zone):
        return Funnel(resolutions, zone)

    def new_leads(self, verdicts, list keys):
        cdef:
            dict leads = self.leads
            set ids = set()
            int i
        for i, verdict in enumerate(verdicts):
            if type(verdict) is Rejected:
                continue
            lead_id = keys[i] or verdict.lead_id.encode()
            if lead_id not in leads:
                ids.add(lead_id)
        return ids

    def add(self, verdicts, list keys, list timestamps, rerouted, dict away, int64_t watermark_ms):
        cdef:
            Counts counts
            Lead lead, former
            Event event
            Buffer buffer
            dict leads = self.leads, opened = {}
            list ids = [], changes = [], rejected = [], foreign = []
            vector[int] first, last, following
            int i, at
            int64_t hangup_ms = self._fold.hangup_ms, late_ms = self._fold.late_ms
            size_t most_events = self._fold.lead_events
            int duplicates = 0, late = 0
            cbool changed
            bytes lead_id, record, packed, mark

        # By lead, each with its events in their order.
        following.resize(len(verdicts), -1)
        for i, verdict in enumerate(verdicts):
            if type(verdict) is Rejected:
                rejected.append((i, verdict))
                continue
            lead_id = keys[i] or verdict.lead_id.encode()
            found = opened.get(lead_id)
            if found is not None:
                at = found
                following[last[at]] = i
                last[at] = i
                continue
            if lead_id in away and not (rerouted and rerouted[i]):
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
                verdict = verdicts[i]
                mark = xxh3_64_digest(verdict.event_id.encode())
                if lead.has_seen(view(mark)):
                    duplicates += 1
                elif lead.events() >= most_events:
                    rejected.append((i, tables.crowded(most_events)))
                else:
                    event = understood(verdict)
                    watermark_ms = max(watermark_ms, event.at.ms)
                    late += <int64_t>timestamps[i] - event.at.ms > late_ms
                    changed |= lead.absorb(event, view(mark))
                    count_activity(event, counts)
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
