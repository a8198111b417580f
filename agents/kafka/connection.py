"""How each Kafka client is told where the broker is and who we are: the only reader of secrets.

The law: a secret is read from its file when a client is made, goes to that client alone, and shows as ***
wherever the options are printed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callfunnel.agents.config import Settings, variable
from callfunnel.agents.errors import BrokerUnavailable, Failure, SettingError, TopicsWrong

if TYPE_CHECKING:
    import ssl

    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError


class Secret(str):
    """Text that clients log and tracebacks print as ***."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def aiokafka_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for aiokafka's consumer, producer and admin client."""
    return {"bootstrap_servers": list(settings.brokers)} | _security(settings)


def kafka_python_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for kafka-python's consumer, producer and admin client."""
    return {"bootstrap_servers": list(settings.brokers)} | _security(settings)


def faust_credentials(settings: Settings) -> Any:
    """Faust's `broker_credentials`; None where the broker asks for none."""
    security = _security(settings)
    context = security.get("ssl_context")
    if settings.security_protocol.startswith("SASL"):
        from faust import SASLCredentials

        return SASLCredentials(
            username=security["sasl_plain_username"],
            password=security["sasl_plain_password"],
            mechanism=security["sasl_mechanism"],
            ssl_context=context,
        )
    if context is not None:
        from faust import SSLCredentials

        return SSLCredentials(context=context)
    return None


def admin_client(settings: Settings, timeout_seconds: float = 5.0) -> KafkaAdminClient:
    """A connected admin client; close it, or leave its context, which says a `KafkaError` in words.

    Raises BrokerUnavailable when no broker answers in time.
    """
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    class Admin(KafkaAdminClient):  # type: ignore[misc]
        def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
            super().__exit__(kind, error, trace)
            if isinstance(error, KafkaError):
                raise _explained(settings, error) from error

    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # the error below says it in one sentence
    try:
        return Admin(
            **kafka_python_options(settings),
            client_id=f"{settings.app_id}-admin",
            bootstrap_timeout_ms=int(timeout_seconds * 1000),
        )
    except (KafkaError, OSError) as error:
        from callfunnel.agents.kafka import diagnosis

        asked = diagnosis.ask(settings.brokers, aiokafka_options(settings))
        start = (
            f" Start one (`make kafka`), or name another with --broker HOST:PORT or {variable('broker')}."
            if all(problem and problem.startswith(diagnosis.NOBODY) for problem in asked.values())
            else ""
        )
        raise BrokerUnavailable(
            f"No Kafka broker answers at {settings.broker} ({settings.security_protocol}). "
            f"{diagnosis.told(asked)}{start}"
        ) from error


def _explained(settings: Settings, error: KafkaError) -> Failure:
    from kafka.errors import AuthorizationError, RetriableError

    what = f"Kafka at {settings.broker} refused what was asked ({error})"
    if isinstance(error, AuthorizationError):
        return TopicsWrong(
            f"{what}: this client lacks a right. `callfunnel topics rights` prints the commands that grant "
            "what is needed; `callfunnel check` says which one is missing."
        )
    if isinstance(error, RetriableError):
        return BrokerUnavailable(
            f"Kafka at {settings.broker} answered too late or is not ready yet ({error}). What was asked may "
            "have been done or not. Run the command again: what is done is left as it is."
        )
    return Failure(f"{what}.")


def read_secret(settings: Settings, name: str) -> Secret | None:
    """What the file of the setting `name` holds, without the newline at its end; None when no file is set."""
    path = getattr(settings, name)
    if path is None:
        return None
    try:
        secret = Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError):
        raise SettingError(f"{variable(name)}: the file cannot be read as UTF-8 text.") from None
    if not secret:
        raise SettingError(f"{variable(name)}: the file is empty.")
    return Secret(secret)


def _security(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = read_secret(settings, "sasl_password_file")
    return options


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca_file)
    except (ssl.SSLError, OSError) as error:
        raise SettingError(f"{variable('ssl_ca_file')}: holds no certificates in PEM ({error}).") from None
    if settings.ssl_cert_file and settings.ssl_key_file:
        # Without a password OpenSSL would ask the terminal for one, and a worker would hang there.
        password = read_secret(settings, "ssl_key_password_file") or ""
        try:
            context.load_cert_chain(settings.ssl_cert_file, settings.ssl_key_file, password)
        except (ssl.SSLError, OSError) as error:
            raise SettingError(
                f"{variable('ssl_cert_file')}: certificate, key and the key's password do not fit together "
                f"({error}). See also {variable('ssl_key_file')} and {variable('ssl_key_password_file')}."
            ) from None
    return context
