"""Mutual TLS: peers with a certificate of the cluster's authority, and nobody else."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clients.peers import PeerExchange
from hffm_flower.d2d import Parcel, play
from hffm_flower.rpc.channel import Credentials
from tests.support.peers import (
    allowed_for,
    chunks_of,
    letter,
    peers,
    push,
    same_parcels,
    star,
    tickets,
    update_of,
)  # fmt: skip

NAME = "peer.test"
Made = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def make(subject: str, issuer: Made | None = None, *, names: tuple[str, ...] = ()) -> Made:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(n) for n in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def credentials(authority: Made, own: Made) -> Credentials:
    return Credentials(
        authority[0].public_bytes(serialization.Encoding.PEM),
        own[0].public_bytes(serialization.Encoding.PEM),
        own[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        NAME,
    )


@pytest.fixture(scope="module")
def authority() -> Made:
    return make("authority")


@pytest.fixture(scope="module")
def member(authority: Made) -> Credentials:
    return credentials(authority, make("device", authority, names=(NAME,)))


def test_a_plan_over_tls_is_the_plan_in_process(member: Credentials) -> None:
    updates = {i: update_of(i) for i in range(3)}
    with peers(range(3), credentials=member) as cluster:
        held = cluster.play(star([1, 2]), updates)
    want = play(updates, star([1, 2]))
    assert all(same_parcels(held[i], want.held[i]) for i in updates)


def outsider(authority: Made) -> Credentials:
    other = make("other authority")
    mixed = credentials(authority, make("device", other, names=(NAME,)))
    return Credentials(mixed.authority, mixed.certificate, mixed.key, NAME)


def in_the_clear(authority: Made) -> None:
    return None


@pytest.mark.parametrize("who", [outsider, in_the_clear])
def test_a_sender_without_a_certificate_of_the_authority_is_cut_off(
    authority: Made, member: Credentials, who: Callable[[Made], Credentials | None]
) -> None:
    with peers(range(2), credentials=member) as cluster:
        chunks = chunks_of(letter(cluster.tickets[1], 0, [Parcel.of(update_of(1), 1)]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            push(
                cluster.reactor, cluster.addresses[0], chunks,
                credentials=who(authority), timeout_s=3.0,
            )  # fmt: skip
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert cluster[0].refused == {}


def test_a_receiver_that_is_not_of_the_authority_is_told_nothing(
    authority: Made, member: Credentials
) -> None:
    updates = {i: update_of(i) for i in (0, 1)}
    with peers([1], credentials=member) as cluster:
        false = outsider(authority)
        with PeerExchange(0, "127.0.0.1:0", credentials=false, reactor=cluster.reactor) as imposter:
            given = tickets({0: f"127.0.0.1:{imposter.port}", 1: cluster.addresses[1]})
            imposter.open(given[0], allowed_for((0, 1)))
            cluster[1].open(given[1], allowed_for((0, 1)))
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(imposter.play, star([1]), 0, [], deadline_s=1.0)
                cluster[1].play(star([1]), 0, [Parcel.of(updates[1], 1)], deadline_s=1.0)
                (held,) = waiting.result()
            assert held.update.state == {}
        (sent,) = cluster[1].sent
    assert (sent.arrived, sent.payload_bytes, sent.header_bytes) == (False, 0, 0)
