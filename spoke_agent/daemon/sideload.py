"""Sideload on the spoke: take a bundle in, follow its directive, write the receipts for the way back.

No socket is opened but the local ones. The verifier and the update machine are the same as over the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from model_formats.core.errors import DeviceError
from provisioning.identity.identity import Identity
from spoke_agent.daemon.wiring import AgentComponents
from spoke_agent.outbox.outbox import Outbox
from spoke_agent.server_api.client import serving_now
from spoke_agent.update.interfaces import ServingProcess
from spoke_agent.update.journal import Entry, Journal
from sync.core.clock import Clock
from sync.sideload.bundle import Applied, Progress, apply_bundle
from sync.sideload.receipts import MAX_LINKS, Receipt, Receipts, write_receipts
from sync.trust.errors import TrustRefused

__all__ = ["SideloadUnfinished", "AppliedUpdate", "follow_through", "make_receipts", "take_in"]

PATIENCE_S = 3600.0
OnLoop = Callable[[Callable[[], None]], object]


def _at_once(call: Callable[[], None]) -> None:
    call()


class SideloadUnfinished(DeviceError):
    """The bundle was taken in, but the update did not come to an end in time."""

    code = "sideload_unfinished"
    hint = "`spoke status` tells what it waits for; an agent (`spoke run`) goes on with it."


@dataclass(frozen=True, slots=True)
class AppliedUpdate:
    """What a bundle brought, for printing."""

    generation: int
    wanted: tuple[str, ...]
    new_blobs: int
    new_bytes: int
    merged: bool


def take_in(components: AgentComponents, path: Path, *, progress: Progress | None = None, on_loop: OnLoop = _at_once) -> Applied:
    """Check a bundle and put its files into the store. Nothing is followed yet. What is refused is reported, too.

    `on_loop`: how to call something on the agent's own thread, where one runs.
    """
    accepted, what = components.agent.controller.directive, f"bundle:{path.name}"
    try:
        with components.arrivals.fetching(what), components.verifier.lock:
            return apply_bundle(
                path,
                me=components.identity.spoke,
                zone=components.identity.zone,
                store=components.store,
                trust=components.verifier.store,
                last_generation=accepted.generation if accepted else 0,
                last_digest=accepted.digest if accepted else None,
                private=_private(components.identity),
                progress=progress,
            )
    except TrustRefused as e:
        refusal = e
        on_loop(lambda: components.agent.refuse(refusal, what.encode()))
        raise


def follow_through(
    components: AgentComponents, applied: Applied, clock: Clock, tell: Callable[[Entry], None], tick_s: float
) -> None:
    """Follow the bundle's directive to its end, in this thread. Raises SideloadUnfinished."""
    seen = _newest(components.journal)
    with components.arrivals.fetching("bundle"):  # what was taken in belongs to no update before this one is followed
        components.agent.controller.recover(clean=components.journal.mark_running())
        components.agent.follow(applied.directive)
    deadline = clock.monotonic() + PATIENCE_S
    while not components.agent.controller.idle():
        if clock.monotonic() > deadline:
            waits = {m.model: components.agent.controller.waiting_for(m.model) for m in applied.directive.models}
            raise SideloadUnfinished(f"still under way: {waits}")
        clock.sleep(tick_s)
        components.agent.controller.tick()
        seen = tell_new(components.journal, seen, tell)
    tell_new(components.journal, seen, tell)
    components.agent.controller.tidy()
    components.journal.mark_stopped()


def tell_new(journal: Journal, seen: int, tell: Callable[[Entry], None]) -> int:
    """Tell the transitions that came after number `seen`; returns the newest number."""
    for entry in journal.since(seen):
        tell(entry)
        seen = entry.id
    return seen


def _newest(journal: Journal) -> int:
    return max((entry.id for entry in journal.history(1)), default=0)


def taken_in(applied: Applied) -> AppliedUpdate:
    """The same, in words for people."""
    return AppliedUpdate(
        applied.directive.generation,
        tuple(f"{m.model}@{m.version}" for m in applied.directive.models),
        applied.new_blobs,
        applied.new_bytes,
        applied.merged,
    )


def make_receipts(
    out: Path, identity: Identity, journal: Journal, server: ServingProcess, outbox: Outbox, clock: Clock
) -> Receipts:
    """Write what this spoke has to say into one signed file: reports not yet acknowledged, and what the outbox lets out."""
    reports = [Receipt(kind="report", text=report.data.decode()) for report in journal.unacknowledged()]
    allowed = [Receipt(kind=kind, text=envelope.decode()) for kind, envelope in outbox.waiting()]
    receipts = Receipts(
        site=identity.spoke.site,
        spoke=identity.spoke.spoke,
        created=clock.now(),
        number=journal.next_number("receipts"),
        generation=journal.generation,
        serving=serving_now(server) or (),
        messages=(*reports, *allowed),
        egress_chain=outbox.log.links(MAX_LINKS),
    )
    write_receipts(out, receipts, identity.signer())
    outbox.mark_carried()
    return receipts


def _private(identity: Identity) -> EllipticCurvePrivateKey | None:
    key = load_pem_private_key(identity.signer().private_bytes, None)
    return key if isinstance(key, EllipticCurvePrivateKey) else None
