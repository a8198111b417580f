"""`callfunnel check` and `callfunnel topics` as a person sees them: lines, remedies and exit codes."""

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from msgspec import structs

from callfunnel.agents import choice
from callfunnel.agents.choice import not_built
from callfunnel.agents.cli import main
from callfunnel.agents.demo.broker import free_port
from callfunnel.agents.engine import checks
from callfunnel.agents.errors import TopicsWrong
from callfunnel.agents.kafka import topics
from callfunnel.streams.partitioning import home
from integration.workers import grow


@pytest.fixture
def callfunnel(capsys):
    """Run the command line; its exit code and what it printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


@pytest.fixture
def environ(broker, monkeypatch):
    """The variables of this test's own topics."""
    settings = broker.settings(partitions=8)
    for name in ("broker", "app_id", "source_topic", "dead_letter_topic", "profile"):
        monkeypatch.setenv(f"CALLFUNNEL_{name.upper()}", getattr(settings, name))
    return settings


def findings(settings):
    return {finding.what: finding for finding in checks.run(settings)}


def test_a_new_broker_is_missing_its_topics_and_after_create_all_is_well(callfunnel, broker, environ):
    code, out, _ = callfunnel("check")
    assert code == 78
    assert (
        f"FAIL topics: {environ.source_topic} is missing\n     remedy: run `callfunnel topics create "
        f"--broker {broker.address} --profile development`" in out
    )

    code, out, err = callfunnel("topics", "create", "--partitions", "8")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"created {environ.source_topic}: 8 partitions, 1 copy"
    assert len(out.splitlines()) == 4

    code, out, _ = callfunnel("check")
    assert code == 0, out
    assert f"ok   broker: {broker.address} answers (PLAINTEXT) as Kafka " in out
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "ok   versions",
        "warn fold" if not_built() else "ok   fold",
        "ok   broker",
        "ok   transactions",
        "ok   descriptors",
        "ok   topics",
        "ok   timestamps",
        "ok   tables",
        "ok   dead letters",
        "ok   routing",
    ]


def test_plain_python_is_told_with_its_cost_and_its_cure_unless_it_was_asked_for(
    callfunnel, broker, environ, monkeypatch
):
    def not_there(name):
        raise ImportError(name)

    topics.create(environ)
    monkeypatch.setattr(choice, "import_module", not_there)
    code, out, _ = callfunnel("check")
    assert code == 0
    assert "warn fold: by the definition, which takes about ten times the CPU\n     remedy: " in out
    assert "`make core`" in out
    monkeypatch.setenv("CALLFUNNEL_TABLES", "core")
    code, out, _ = callfunnel("check")
    assert code == 78
    assert "FAIL fold: CALLFUNNEL_TABLES asks for the core: a worker ends with 64" in out
    monkeypatch.setenv("CALLFUNNEL_TABLES", "definition")
    code, out, _ = callfunnel("check")
    assert code == 0
    assert "ok   fold: by the definition, as CALLFUNNEL_TABLES says\n" in out


def test_create_may_be_run_again_and_tells_what_it_left_as_it_is(callfunnel, environ):
    assert callfunnel("topics", "create", "--partitions", "2")[0] == 0
    code, out, _ = callfunnel("topics", "create", "--partitions", "16")
    assert code == 0
    assert out.splitlines()[0] == f"exists  {environ.source_topic}: 2 partitions, 1 copy"


def test_a_topic_that_is_not_right_is_told_by_create_check_and_list_and_set_right_by_fix(
    callfunnel, broker, environ
):
    broker.topics("call-events", partitions=2, config={"cleanup.policy": "compact"})
    wrong = (
        f"wrong   {environ.source_topic}: cleanup.policy is compact, not delete; run "
        f"`callfunnel topics fix --broker {broker.address} --profile development`"
    )
    for command in ("create", "check"):
        code, _, err = callfunnel("topics", command)
        assert code == 78
        assert wrong in err
    code, out, _ = callfunnel("topics", "list")
    assert code == 0
    assert "cleanup.policy=compact " in out
    code, out, _ = callfunnel("topics", "fix")
    assert code == 0
    assert f"set {environ.source_topic}: cleanup.policy=delete" in out
    assert callfunnel("topics", "check")[:2] == (0, "All topics are as they have to be.\n")


def test_the_check_leaves_nothing_in_the_dead_letters(broker):
    settings = broker.settings(partitions=1)
    topics.create(settings)
    assert findings(settings)["dead letters"].ok
    consumer = KafkaConsumer(bootstrap_servers=broker.address, isolation_level="read_committed")
    partition = TopicPartition(settings.dead_letter_topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    assert consumer.poll(1500) == {}
    consumer.close()


def test_leads_published_by_kafka_python_lie_at_home(broker):
    settings = broker.settings(partitions=8)
    topics.create(settings)
    producer = KafkaProducer(bootstrap_servers=broker.address)
    for number in range(50):
        producer.send(settings.source_topic, b"{}", key=b"lead-%d" % number)
    producer.close()
    assert findings(settings)["routing"] == checks.Finding(
        True, "routing", f"the latest 50 leads of {settings.source_topic} lie where murmur2 puts them"
    )


def publish_with_librdkafka(settings, keys, **options):
    producer = Producer({"bootstrap.servers": settings.broker, **options})
    for key in keys:
        producer.produce(settings.source_topic, b"{}", key=key)
    assert producer.flush(20) == 0


def test_leads_published_by_librdkafka_are_named_with_the_setting_that_cures_it(broker):
    settings = broker.settings(partitions=8)
    topics.create(settings)
    keys = [b"lead-%d" % number for number in range(50)]
    publish_with_librdkafka(settings, keys)
    away = sum(home(key, 8, "murmur2") != home(key, 8, "crc32") for key in keys)
    routing = findings(settings)["routing"]
    assert not routing.ok
    assert routing.told.startswith(f"{away} of the latest 50 leads of {settings.source_topic} (")
    assert "all of them where crc32 does" in routing.told
    assert "set partitioner=murmur2_random" in routing.remedy
    assert findings(structs.replace(settings, partitioner="crc32"))["routing"].ok


def test_with_that_setting_leads_published_by_librdkafka_lie_at_home(broker):
    settings = broker.settings(partitions=8)
    topics.create(settings)
    publish_with_librdkafka(
        settings, [b"lead-%d" % number for number in range(50)], partitioner="murmur2_random"
    )
    assert findings(settings)["routing"].ok


def test_a_source_that_has_grown_is_what_is_wrong_and_its_publishers_are_not(broker):
    settings = broker.settings(partitions=2)
    topics.create(settings)
    keys = [b"lead-%d" % number for number in range(50)]
    publish_with_librdkafka(settings, keys, partitioner="murmur2_random")
    grow(settings, 3, settings.source_topic)
    assert "tables" not in findings(settings)
    names = {"app_id": f"{settings.app_id}-anew", "dead_letter_topic": f"{settings.dead_letter_topic}-anew"}
    anew = structs.replace(settings, partitions=3, **names)  # as the remedy count-anew says
    topics.create(anew)
    found = findings(anew)
    assert found["tables"].ok
    assert found["routing"].ok
    assert found["routing"].told.startswith("3")
    assert found["routing"].remedy.startswith("none, if the topic has grown by partitions since")


def test_records_without_a_key_are_told(broker):
    settings = broker.settings(partitions=2)
    topics.create(settings)
    producer = KafkaProducer(bootstrap_servers=broker.address)
    producer.send(settings.source_topic, b"{}").get(10)
    producer.close()
    routing = findings(settings)["routing"]
    assert routing.told == f"1 of the latest 1 records of {settings.source_topic} have no key"
    assert not routing.ok


def test_a_broker_that_is_down_is_told_with_its_address_and_exit_code_69(callfunnel):
    address = f"127.0.0.1:{free_port()}"
    for command in (["check"], ["topics", "check"], ["topics", "create", "--wait", "1"]):
        code, _, err = callfunnel(*command, "--broker", address)
        assert code == 69
        assert f"No Kafka broker answers at {address}" in err
        assert "--broker HOST:PORT" in err


def test_an_address_that_is_dead_is_told_apart_from_one_that_answers(broker):
    dead = f"127.0.0.1:{free_port()}"
    settings = broker.settings(partitions=1)
    topics.create(settings)
    found = list(checks.run(structs.replace(settings, broker=f"{dead},{broker.address}")))
    told = {one.told.split(":")[1].split(" ")[0]: one for one in found if one.what == "broker"}
    assert told[dead.split(":")[1]].ok is False
    assert "connection refused" in told[dead.split(":")[1]].told
    assert any(one.ok and one.told.startswith(f"{broker.address} answers") for one in found)


def test_more_copies_than_brokers_are_told_with_what_helps(broker):
    if broker.kind == "embedded":
        pytest.skip("the embedded broker does not say how many brokers there are")
    settings = broker.settings(replication_factor=3, min_insync_replicas=2)
    with pytest.raises(TopicsWrong, match="3 copies, and the cluster has 1 broker: add brokers, or"):
        topics.create(settings)
    wrong = topics.compare(settings)
    assert [one.what for one in wrong] == ["missing"] * 4
    assert all("CALLFUNNEL_PROFILE=development" in one.remedy for one in wrong)
    assert not any("topics create" in one.remedy for one in wrong)
