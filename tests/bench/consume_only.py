"""The transport's limit: librdkafka hands out every record, and nobody looks at it."""

from bench.contender import Stream, finish


def main() -> None:
    for _ in Stream.from_argv():
        pass
    finish({})


if __name__ == "__main__":
    main()
