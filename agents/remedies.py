"""What a person can do where a worker cannot go on by itself: how, and what it costs in events.

The law: messages and runbooks name each of these by its id, and a fault plan carries each one out as it is
written here and counts what is left. Advice that loses or doubles events is a fault like any other.
"""

from collections.abc import Mapping

from msgspec import Struct


class Remedy(Struct, frozen=True):
    """`str` of it is the sentence that a message ends with."""

    id: str
    when: str
    do: str
    cost: str

    def __str__(self) -> str:
        return f"{self.do} (remedy {self.id})"


REMEDIES: Mapping[str, Remedy] = {
    remedy.id: remedy
    for remedy in (
        Remedy(
            "start-again",
            "a worker ended with 70 or 75",
            "start the worker again",
            "nothing: it goes on where the tables end",
        ),
        Remedy(
            "create-topics",
            "a topic is missing",
            "run `callfunnel topics create`",
            "nothing, but what the topic held: of the source, its events; of dead letters, these; "
            "a changelog alone is refused afterwards (see rebuild)",
        ),
        Remedy(
            "fix-topics",
            "a topic has other settings than it must have",
            "run `callfunnel topics fix`",
            "nothing",
        ),
        Remedy(
            "grant-rights",
            "a client lacks a right",
            "grant what `callfunnel topics rights` prints, and start the worker again",
            "nothing",
        ),
        Remedy(
            "count-anew",
            "the tables were made from another topic, from one with fewer partitions, with another "
            "partitioner, or by a version that kept no logs of leads",
            "give CALLFUNNEL_APP_ID and CALLFUNNEL_DEAD_LETTER_TOPIC new names, run "
            "`callfunnel topics create`, and start the workers: they count all that the source holds",
            "events that the source holds no more (retention)",
        ),
        Remedy(
            "adopt",
            "the same records lie at the same offsets in another topic: a restore, a mirror",
            "stop all workers and run `callfunnel source adopt`, which compares before it changes anything",
            "nothing",
        ),
        Remedy(
            "fold-adopt",
            "rows were made with other settings of the fold since, and a worker with former ones comes back",
            "give all workers the same settings; to go back to these ones, stop all workers and run "
            "`callfunnel fold adopt` with them",
            "nothing: rows follow from logs; what a shorter retention has archived stays archived",
        ),
        Remedy(
            "rebuild",
            "a changelog is damaged, was made anew, or the two do not belong together",
            "stop all workers, delete both changelogs and the dead-letter topic "
            "(`kafka-topics.sh --delete`), run `callfunnel topics create`, and start the workers: they count "
            "all that the source holds",
            "events that the source holds no more (retention), and their dead letters",
        ),
        Remedy(
            "resume",
            "poison has stopped a partition (CALLFUNNEL_DLQ_STOP)",
            "run `callfunnel source resume --partition N`",
            "nothing: what is rejected is in the dead letters",
        ),
        Remedy(
            "give-up",
            "records of the source are damaged, and there is no whole copy of them",
            "delete the partition's records before the offset that the log names (`kafka-delete-records.sh`)",
            "the damaged records: the log says how many, and they are counted as a gap",
        ),
    )
}
