"""Why a broker cannot be used: each address is asked step by step until a step fails, which has a sentence.

The law: a cause is named only if it was seen. Nothing here sends credentials anywhere but where the settings
send them.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslHandShakeRequest
from aiokafka.protocol.metadata import MetadataRequest

from callfunnel.agents.config import variable

PATIENCE_SECONDS = 2.0
"""Of each step with each address."""

NOBODY = "nothing ", "the name "
"""How a problem begins where there is no broker at all, or none that could be asked."""


def ask(brokers: Iterable[str], options: Mapping[str, Any]) -> Mapping[str, str | None]:
    """What is wrong with each address, in words; None where the options of aiokafka's clients fit."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what is returned says it
    with ThreadPoolExecutor(1) as thread:  # the caller may be in an event loop
        return thread.submit(asyncio.run, _ask_all(list(brokers), options)).result()


def told(found: Mapping[str, str | None]) -> str:
    """One sentence for each address."""
    return " ".join(f"{address}: {problem or 'answers'}." for address, problem in found.items())


async def _ask_all(brokers: list[str], options: Mapping[str, Any]) -> Mapping[str, str | None]:
    of_one = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    answers = await asyncio.gather(*[_ask(address, of_one) for address in brokers])
    return dict(zip(brokers, answers, strict=True))


async def _ask(address: str, options: Mapping[str, Any]) -> str | None:
    try:
        connection = await _connected(address, options)
    except Exception as error:  # of whatever kind the libraries have for it
        return await _why(error, address, options)
    try:
        answer = await connection.send(MetadataRequest([]))
    except (KafkaError, OSError):
        return await _why_no_answer(address, options)
    finally:
        connection.close()
    for _, host, port, *_ in answer.brokers:
        named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if named != address and (unreachable := await _unreachable(host, port)):
            return (
                f"answers, but names the broker {named}, and {unreachable}: its advertised.listeners must be "
                "addresses that this machine reaches"
            )
    return None


async def _connected(address: str, options: Mapping[str, Any]) -> AIOKafkaConnection:
    ((host, port, _),) = collect_hosts([address])
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await create_conn(
            host, port, client_id="callfunnel", request_timeout_ms=int(PATIENCE_SECONDS * 1000), **options
        )


async def _why(error: Exception, address: str, options: Mapping[str, Any]) -> str:
    ((host, port, _),) = collect_hosts([address])
    tls = options["security_protocol"].endswith("SSL")
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"its certificate is not accepted ({error.verify_message}): {variable('ssl_ca_file')} names "
                "the file of who may sign it, and the address must be a name that it was made for"
            )
        case SaslAuthenticationFailed() | AuthenticationFailedError():
            return (
                f"it refuses user and password ({options['sasl_mechanism']}): see "
                f"{variable('sasl_username')} and {variable('sasl_password_file')}"
            )
        case UnsupportedSaslMechanismError():
            return (
                f"it does not offer {options['sasl_mechanism']}: choose another "
                f"{variable('sasl_mechanism')}, or have it enabled there (sasl.enabled.mechanisms)"
            )
        case IllegalSaslStateError():
            return f"this listener asks for no credentials: set {variable('security_protocol')} without SASL"
    if unreachable := await _unreachable(host, port):
        return unreachable
    if tls and await _speaks(address, "PLAINTEXT"):
        return (
            f"this listener has no TLS, and {variable('security_protocol')} is "
            f"{options['security_protocol']}: name its TLS listener, or set PLAINTEXT"
        )
    if not tls and await _has_tls(host, port):
        return (
            f"this listener wants TLS, and {variable('security_protocol')} is "
            f"{options['security_protocol']}: set SSL or SASL_SSL"
        )
    if isinstance(error, ssl.SSLError):
        return f"no TLS with it ({error.reason or error}): see {variable('ssl_cert_file')}"
    return f"it took the connection, but does not answer as Kafka within {PATIENCE_SECONDS:g} s"


async def _why_no_answer(address: str, options: Mapping[str, Any]) -> str:
    """It spoke Kafka, and closed the connection when it was asked for more."""
    protocol = options["security_protocol"]
    offered = () if protocol.startswith("SASL") else await _mechanisms(address, options)
    if offered:
        with_sasl = "SASL_SSL" if protocol == "SSL" else "SASL_PLAINTEXT"
        return (
            f"this listener wants credentials ({', '.join(offered)}): set {variable('security_protocol')} to "
            f"{with_sasl}, {variable('sasl_mechanism')}, {variable('sasl_username')} and "
            f"{variable('sasl_password_file')}"
        )
    if protocol == "SSL":
        return (
            "it ends the connection after TLS: does it ask for a client's certificate "
            f"({variable('ssl_cert_file')})?"
        )
    return "it speaks Kafka, but does not tell which brokers there are"


async def _mechanisms(address: str, options: Mapping[str, Any]) -> Iterable[str]:
    with contextlib.suppress(KafkaError, OSError):
        connection = await _connected(address, options)
        try:
            answer = await connection.send(SaslHandShakeRequest("none of these"))
        finally:
            connection.close()
        mechanisms: list[str] = answer.enabled_mechanisms
        return mechanisms
    return ()


async def _speaks(address: str, security_protocol: str) -> bool:
    with contextlib.suppress(KafkaError, OSError, AssertionError):
        (await _connected(address, {"security_protocol": security_protocol})).close()
        return True
    return False


async def _has_tls(host: str, port: int) -> bool:
    """Whether a TLS handshake succeeds, with whatever certificate: nothing is sent."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.close()
            return True
    return False


async def _unreachable(host: str, port: int) -> str | None:
    """Why no TCP connection can be made, in words; None when one can."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return None
    except socket.gaierror as error:
        return f"the name {host} cannot be resolved ({error.strerror})"
    except ConnectionRefusedError:
        return "nothing listens there (connection refused)"
    except TimeoutError:
        return f"nothing answers there within {PATIENCE_SECONDS:g} s: is it down, or behind a firewall?"
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return f"this process has no file descriptor left ({os.strerror(error.errno)})"
        # Where several addresses of a name fail, asyncio joins their messages.
        return f"it cannot be reached ({error.strerror or error})"
