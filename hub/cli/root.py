"""`hub root`: the keys behind all trust. `key` and `sign` need no hub: they run on the offline machine that holds the keys."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tuf.api.metadata import Metadata, Root, Targets

from hub.config.home import HubHome
from hub.context import HubMissing
from model_formats.core.console import Context, emit, out, pass_context, table
from model_formats.core.errors import OperatorError
from model_formats.core.file_lock import FileLock
from model_formats.core.files import atomic_write
from sync.trust.keys import Key, key_of_pem, load_signer, pem_of, role_signer, save_signer
from sync.trust.metadata import Proposal, Repository, add_signature
from sync.trust.repository_files import read_metadata

__all__ = ["group"]

FILE = click.Path(path_type=Path, dir_okay=False)


class ProposalUnreadable(OperatorError):
    """The file that should be signed or accepted cannot be read."""

    code = "proposal_unreadable"
    hint = "`hub root rotate` and `hub root pending` write such files: ROLE.json."


@click.group("root")
def group() -> None:
    """Keys and roles of the release metadata: look, rotate, sign offline, accept."""


@group.command()
@click.option("--keys", type=click.Path(path_type=Path), help="Folder of offline keys; default is in the hub's home.")
@pass_context
def status(ctx: Context, keys: Path | None) -> None:
    """Every role: version, expiry, how many must sign, and whose keys are on this machine."""
    with _repository(ctx, keys) as repository:
        rows = repository.status()
        waiting = [_proposal_view(p) for p in repository.pending()]
    emit(ctx, {"roles": rows, "pending": waiting}, _show_status)


@group.command()
@click.argument("path", type=FILE)
@pass_context
def key(ctx: Context, path: Path) -> None:
    """Make a key pair: PATH (private, 0600) and PATH.pub. No hub is needed."""
    signer = role_signer()
    save_signer(path, signer)
    public = path.with_name(path.name + ".pub")
    atomic_write(public, pem_of(signer.public_key).encode())
    emit(ctx, {"private": str(path), "public": str(public), "id": signer.public_key.keyid}, _show_key)


@group.command()
@click.argument("roles", metavar="ROLE...", nargs=-1, required=True)
@click.option("--new", "new", multiple=True, type=FILE, help="Public key (PEM) to take over; default: a new key here.")
@click.option("--remove", multiple=True, help="For root: key id, or its beginning, to take out.")
@click.option("--threshold", type=click.IntRange(min=1), help="How many must sign from now on.")
@click.option("--keys", type=click.Path(path_type=Path), help="Folder of offline keys; default is in the hub's home.")
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Folder for what still has to be signed elsewhere.")
@pass_context
def rotate(
    ctx: Context,
    roles: tuple[str, ...],
    new: tuple[Path, ...],
    remove: tuple[str, ...],
    threshold: int | None,
    keys: Path | None,
    folder: Path | None,
) -> None:
    """Replace the keys of ROLE: root, targets, snapshot, timestamp, director or model-NAME.

    Roles that were lost together are replaced together. For root, give --new and --remove.
    """
    if roles != ("root",) and remove:
        raise click.UsageError("--remove is for root alone; the keys of other roles are all replaced")
    if roles == ("root",) and not (new or remove or threshold):
        raise click.UsageError("for root, give --new, --remove or --threshold")
    added = [_public(p) for p in new]
    with _repository(ctx, keys) as repository:
        if roles == ("root",):
            gone = [_one_key(repository.root.roles["root"].keyids, start) for start in remove]
            repository.roll_root(add=added, remove=gone, threshold=threshold)
        else:
            repository.roll(*roles, keys=added, threshold=threshold)
        waiting = repository.pending()
    _carry(waiting, folder)
    emit(ctx, {"rotated": " ".join(roles), "pending": [_proposal_view(p) for p in waiting]}, _show_rotated)


@group.command()
@click.argument("role")
@click.option("--keys", type=click.Path(path_type=Path), help="Folder of offline keys; default is in the hub's home.")
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Folder for what still has to be signed elsewhere.")
@pass_context
def renew(ctx: Context, role: str, keys: Path | None, folder: Path | None) -> None:
    """Sign ROLE anew before it expires: root, targets or model-NAME. The hub renews snapshot and timestamp itself."""
    with _repository(ctx, keys) as repository:
        answer = repository.renew(role)
    _carry([] if answer.complete else [answer], folder)
    emit(ctx, _proposal_view(answer), lambda told: _show_pending([told]))


@group.command()
@click.option("--out", "folder", type=click.Path(path_type=Path), required=True, help="Folder to write them to.")
@pass_context
def pending(ctx: Context, folder: Path) -> None:
    """Write out what waits for signatures, to carry it to whoever holds the keys."""
    with _repository(ctx, None) as repository:
        waiting = repository.pending()
    _carry(waiting, folder)
    emit(ctx, [_proposal_view(p) for p in waiting], _show_pending)


@group.command()
@click.argument("proposal", type=FILE)
@click.option("--key", "key_files", multiple=True, required=True, type=FILE, help="Private key to sign with.")
@click.option("--dry-run", is_flag=True, help="Only show what would be signed.")
@pass_context
def sign(ctx: Context, proposal: Path, key_files: tuple[Path, ...], *, dry_run: bool) -> None:
    """Show what PROPOSAL says, and sign it in place. Runs on a machine without network and without a hub."""
    data = _read(proposal)
    told = _contents(proposal.stem, read_metadata(data))
    if not dry_run:
        signers = [load_signer(p) for p in key_files]
        atomic_write(proposal, add_signature(data, *signers))
        told["signed_by"] = [s.public_key.keyid for s in signers]
    emit(ctx, told, _show_contents)


@group.command()
@click.argument("proposal", type=FILE)
@pass_context
def accept(ctx: Context, proposal: Path) -> None:
    """Take a signed proposal back; it is published when enough have signed."""
    with _repository(ctx, None) as repository:
        answer = repository.accept(proposal.stem, _read(proposal))
    emit(ctx, _proposal_view(answer), lambda told: _show_pending([told]))


@contextmanager
def _repository(ctx: Context, keys: Path | None) -> Iterator[Repository]:
    """The hub's repository, locked against a hub that runs (it takes the change up at its next look)."""
    home = HubHome(ctx.home)
    if not home.metadata.exists():
        raise HubMissing(f"no hub in {ctx.home}")
    with FileLock(home.metadata / ".lock"):
        yield Repository(home.metadata, keys=keys or home.keys)


def _one_key(keyids: Sequence[str], start: str) -> str:
    """The key that is meant. A key that somebody lost must not stay trusted because its id was mistyped."""
    found = [keyid for keyid in keyids if start and keyid.startswith(start)]
    if len(found) != 1:
        held = ", ".join(keyid[:8] for keyid in keyids)
        raise click.BadParameter(f"{start!r} begins {len(found)} of the root keys ({held})", param_hint="--remove")
    return found[0]


def _public(path: Path) -> Key:
    return key_of_pem(_read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ProposalUnreadable(f"{path}: {e.strerror or e}") from e


def _carry(waiting: Sequence[Proposal], folder: Path | None) -> None:
    for proposal in waiting if folder else ():
        atomic_write(Path(str(folder)) / f"{proposal.role}.json", proposal.data)


def _proposal_view(proposal: Proposal) -> dict[str, Any]:
    return {
        "role": proposal.role,
        "version": proposal.version,
        "signed": proposal.signed,
        "threshold": proposal.threshold,
        "complete": proposal.complete,
    }


def _contents(role: str, metadata: Metadata[Any]) -> dict[str, Any]:
    """What somebody is about to put their name to."""
    signed = metadata.signed
    told: dict[str, Any] = {"role": role, "version": signed.version, "expires": signed.expires.isoformat()}
    if isinstance(signed, Root):
        told["roles"] = {n: {"threshold": r.threshold, "keys": list(r.keyids)} for n, r in signed.roles.items()}
    if isinstance(signed, Targets):
        told["targets"] = {path: {"sha256": t.hashes.get("sha256"), **(t.custom or {})} for path, t in signed.targets.items()}
        roles = signed.delegations.roles if signed.delegations and signed.delegations.roles else {}
        told["roles"] = {n: {"threshold": r.threshold, "keys": list(r.keyids)} for n, r in roles.items()}
    return told


def _show_status(told: dict[str, Any]) -> None:
    table(
        ("role", "version", "expires", "must sign", "keys (* here)"),
        (
            (
                r["role"],
                r["version"],
                r["expires"][:10],
                r["threshold"],
                " ".join(k["id"][:8] + "*" * k["here"] for k in r["keys"]),
            )
            for r in told["roles"]
        ),
    )
    if told["pending"]:
        out.print("\nwaiting for signatures:")
        _show_pending(told["pending"])


def _show_key(told: dict[str, Any]) -> None:
    out.print(f"private key  {told['private']}   (keep it offline)")
    out.print(f"public key   {told['public']}   id {told['id'][:8]}")


def _show_pending(told: Sequence[dict[str, Any]]) -> None:
    table(
        ("role", "version", "signatures", "state"),
        (
            (p["role"], p["version"], f"{p['signed']} of {p['threshold']}", "published" if p["complete"] else "waits")
            for p in told
        ),
    )


def _show_rotated(told: dict[str, Any]) -> None:
    if told["pending"]:
        out.print(f"{told['rotated']}: proposed; it waits for signatures")
        _show_pending(told["pending"])
    else:
        out.print(f"{told['rotated']}: keys replaced and published")


def _show_contents(told: dict[str, Any]) -> None:
    out.print(f"{told['role']} version {told['version']}, valid until {told['expires'][:10]}")
    for name, role in told.get("roles", {}).items():
        out.print(f"  role {name}: {role['threshold']} of {' '.join(k[:8] for k in role['keys'])}")
    for path, target in told.get("targets", {}).items():
        out.print(f"  target {path}: {str(target['sha256'])[:16]} zones {', '.join(target.get('zones', [])) or '-'}")
    if "signed_by" in told:
        out.print(f"signed by {' '.join(k[:8] for k in told['signed_by'])}")
