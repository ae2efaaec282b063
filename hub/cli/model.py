"""`hub model`: build, import, publish, sign, list, show, verify, deny."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli.engine_words import micros, way
from hub.client.http import HubClient
from hub.config.home import HubHome
from model_formats.core.console import Context, emit, out, pass_context, table, talk
from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef
from sync.core.types import REGIMES

if TYPE_CHECKING:
    from model_formats.build.build import BuildOptions, BuildResult
    from model_formats.documents.evidence import Lineage
    from model_formats.documents.feature_contract import FeatureContract
    from model_formats.signing.signature import PublisherPolicy, Signer

__all__ = ["group"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class NotBuilt(OperatorError):
    """A version without a model folder on this machine."""

    code = "not_built"
    hint = "`hub model build` or `hub model import` makes the folder; one that lies elsewhere is published by its path."


@click.group("model")
def group() -> None:
    """Build, sign and release models."""


@group.command()
@click.argument("recipe")
@click.option("--version", type=click.IntRange(min=1), required=True, help="Version number to give it.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to build into; default is in the hub's home.")
@click.option("--zone", "zones", multiple=True, help="Residency zone it may go to; default is the recipe's.")
@click.option(
    "--regime", "regimes", multiple=True, type=click.Choice(REGIMES), help="Regime it may go to; default is the recipe's."
)
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Largest loss of accuracy from fp32 to INT8.")
@click.option("--openvino-ir", is_flag=True, default=None, help="Also make an OpenVINO variant.")
@click.option(
    "--emulate/--no-emulate",
    default=None,
    help="Try the variants on emulated classes of CPU; default: where qemu-user-static is.",
)
@click.option("--offer-slow", is_flag=True, default=None, help="Keep INT8 that this machine runs no faster than fp32.")
@click.option(
    "--override-gate", metavar="WHO", help="Let a failed accuracy gate through; the name goes on the card and into the audit."
)
@pass_context
def build(ctx: Context, /, recipe: str, version: int, out: Path | None, **changes: Any) -> None:
    """Train RECIPE (a name, or package.module:attribute) and build a model folder: export, INT8, gate, evidence."""
    from hub.train import runner

    home = HubHome(ctx.home)
    changes["overridden_by"], changes["emulate"] = changes.pop("override_gate"), _emulate(changes["emulate"])
    given = {name: value for name, value in changes.items() if value not in (None, ())}
    folder = out or home.build(recipe.rpartition(":")[0].rpartition(".")[2] or recipe, version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    result = runner.build(recipe, folder, runs=home.root / "runs", version=version, progress=talk.print, **given)
    emit(ctx, _built(result, folder), _show_built)


@group.command("import")
@click.argument("source")
@click.option("--model", "name", required=True, help="Name to give it.")
@click.option("--version", type=click.IntRange(min=1), required=True, help="Version number to give it.")
@click.option("--train", type=_FILE, required=True, help="Rows it was trained on, .npz or .csv: they calibrate INT8.")
@click.option("--held-out", type=_FILE, required=True, help="Rows it never saw, .npz or .csv: scores are taken on these.")
@click.option("--zone", "zones", multiple=True, required=True, help="Residency zone it may go to.")
@click.option("--regime", "regimes", multiple=True, required=True, type=click.Choice(REGIMES), help="Regime it may go to.")
@click.option("--contract", type=_FILE, help="contract.json; default: told by the source or the rows.")
@click.option("--task", type=click.Choice(("classification", "regression", "embedding")), help="Without --contract.")
@click.option("--classes", help="Names of the output's columns, by commas; default: as found in the labels.")
@click.option("--label", default="label", show_default=True, help="Column of labels in .csv rows.")
@click.option("--title", help="One line for people; default: the name.")
@click.option("--licence", default="proprietary", show_default=True, help="SPDX identifier of the licence.")
@click.option("--asset", "assets", multiple=True, type=_FILE, help="File for callers, signed with the rest: a vocabulary, ...")
@click.option("--quantize", type=click.Choice(("auto", "static", "dynamic", "none")), default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to build into; default is in the hub's home.")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Largest loss of accuracy from fp32 to INT8.")
@click.option("--openvino-ir", is_flag=True, default=None, help="Also make an OpenVINO variant.")
@click.option(
    "--emulate/--no-emulate",
    default=None,
    help="Try the variants on emulated classes of CPU; default: where qemu-user-static is.",
)
@click.option("--offer-slow", is_flag=True, default=None, help="Keep INT8 that this machine runs no faster than fp32.")
@click.option(
    "--override-gate", metavar="WHO", help="Let a failed accuracy gate through; the name goes on the card and into the audit."
)
@pass_context
def import_(
    ctx: Context,
    /,
    source: str,
    train: Path,
    held_out: Path,
    contract: Path | None,
    task: Any,
    classes: str | None,
    label: str,
    out: Path | None,
    **words: Any,
) -> None:
    """Build a model folder from a model that was trained elsewhere.

    SOURCE is a .onnx file (external data beside it is taken along), a .pt2 file (torch.export, first dimension dynamic), a
    Hugging Face folder (bert family, safetensors), or package.module:factory, where factory() gives a torch module.

    Rows in .npz are arrays `input:<name>`, `labels`, and `column:<name>` for scores per value. Rows in .csv have a header:
    numbers, the labels' column, and `slice:<name>` for scores per value.

    \b
    hub model import fraud.onnx --model fraud --version 1 --train train.csv --held-out test.csv \\
        --classes good,fraud --zone eu --regime gdpr
    """
    from hub.train.import_model import import_model
    from model_formats.build.build import build_model_folder

    ModelRef.parse(f"{words['name']}@{words['version']}")  # before anything is opened
    listed = tuple(c.strip() for c in classes.split(",")) if classes else ()
    brought = import_model(source, train, held_out, contract=contract, task=task, classes=listed, label=label)
    options = _options(brought.contract, brought.lineage, **words)
    folder = out or HubHome(ctx.home).build(options.model, options.version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    result = build_model_folder(brought.source, folder, brought.data, options, talk.print)
    emit(ctx, _built(result, folder), _show_built)


def _options(contract: "FeatureContract", lineage: "Lineage", /, **words: Any) -> "BuildOptions":
    from model_formats.build.build import BuildOptions

    words["model"], words["overridden_by"] = words.pop("name"), words.pop("override_gate")
    words["title"], words["emulate"] = words["title"] or words["model"], _emulate(words["emulate"])
    given = {name: value for name, value in words.items() if value is not None}
    return BuildOptions(contract=contract, lineage=lineage, **given)


def _emulate(wanted: bool | None) -> bool:  # noqa: FBT001 - as click gives it
    from model_formats.build.emulated import emulated_classes

    return bool(emulated_classes()) if wanted is None else wanted


def _built(result: "BuildResult", folder: Path) -> dict[str, Any]:
    return {
        "model": f"{result.spec.model}@{result.spec.version}",
        "folder": str(folder),
        "adaptable": result.spec.adapter is not None,
        "notes": list(result.notes),
        "variants": [{k: told for k, told in v.plain.items() if k != "slices"} for v in result.evidence.variants],
        "gate": result.evidence.gate.plain,
    }


@group.command()
@click.argument("what", metavar="FOLDER|MODEL@VERSION")
@click.option(
    "--fallback", "fallback", multiple=True, type=int, help="Version that may follow it backwards; default: the previous."
)
@click.option("--no-fallback", is_flag=True, help="Grant no way back.")
@click.option("--zone", "zones", multiple=True, help="Narrow the package's own zones.")
@click.option("--keys", type=click.Path(path_type=Path), help="Folder of offline keys; default is in the hub's home.")
@click.option("--deltas", type=int, default=3, show_default=True, help="Make deltas from so many earlier versions.")
@click.option("--certificate", type=_FILE, help="Sign by this chain (PEM, leaf first) instead of the publisher's key.")
@click.option("--certificate-key", type=_FILE, help="Private key of the certificate (PEM, EC).")
@click.option("--root", type=_FILE, help="Root (PEM) under which spokes trust the certificate; default: the last of the chain.")
@click.option("--identity", help="Who signs: a name in the certificate, or, without one, a Sigstore identity (keyless).")
@click.option("--issuer", help="OpenID Connect issuer of the Sigstore identity.")
@click.option("--identity-token", type=_FILE, help="File with the identity token; default: ask the environment (CI) for one.")
@click.option("--sigstore-config", type=_FILE, help="Client trust configuration of a private Sigstore instance (JSON).")
@pass_context
def publish(
    ctx: Context,
    /,
    what: str,
    fallback: tuple[int, ...],
    zones: tuple[str, ...],
    keys: Path | None,
    deltas: int,
    *,
    no_fallback: bool,
    **signing: Any,
) -> None:
    """Pack, sign, push and release a model folder.

    The publisher's key of this machine signs (`publisher.pem`), unless --certificate or --identity says otherwise. Spokes then
    trust exactly that publisher for this version: it goes into the release.
    """
    from hub.client import publish as publishing

    home = HubHome(ctx.home)
    folder = Path(what)
    if not folder.is_dir():
        ref = ModelRef.parse(what)
        folder = home.build(ref.name, ref.version)
        if not folder.is_dir():
            raise NotBuilt(f"{ref} was not built here: there is no {folder}")
    back = () if no_fallback else (fallback or None)
    signer, policy = _signer(_SigningOptions(**signing))
    with HubClient.local(ctx.home) as hub:
        done = publishing.publish(
            hub,
            folder,
            home.packages,
            keys or home.keys,
            signer=signer,
            policy=policy,
            zones=zones,
            fallback=back,
            deltas=deltas,
            say=talk.print,
        )
    told = {
        "model": str(done.ref),
        "index": done.index,
        "signature": done.signature,
        "complete": done.complete,
        "signatures": f"{done.signed} of {done.threshold}",
        "deltas": [{"bytes": d.size, "of": d.target_size, "base": d.base, "target": d.target} for d in done.deltas],
    }
    emit(ctx, told, _show_published)


@dataclass(frozen=True, slots=True)
class _SigningOptions:
    """The options of `publish` that say who signs."""

    certificate: Path | None
    certificate_key: Path | None
    root: Path | None
    identity: str | None
    issuer: str | None
    identity_token: Path | None
    sigstore_config: Path | None


def _signer(given: _SigningOptions) -> "tuple[Signer | None, PublisherPolicy | None]":
    """Who signs and whom spokes will trust for it; nobody named: the publisher's key."""
    from hub.client import signing as signers

    if given.certificate:
        if given.certificate_key is None or given.issuer or given.identity_token or given.sigstore_config:
            raise click.UsageError("--certificate goes with --certificate-key, and without Sigstore's options")
        return signers.by_certificate(given.certificate, given.certificate_key, root=given.root, name=given.identity)
    if given.certificate_key or given.root:
        raise click.UsageError("--certificate-key and --root go with --certificate")
    if given.identity or given.issuer:
        if not (given.identity and given.issuer):
            raise click.UsageError("keyless signing needs both --identity and --issuer")
        return signers.by_identity(given.identity, given.issuer, token=given.identity_token, config=given.sigstore_config)
    if given.identity_token or given.sigstore_config:
        raise click.UsageError("--identity-token and --sigstore-config go with --identity and --issuer")
    return None, None


@group.command()
@click.option("--keys", type=click.Path(path_type=Path), help="Folder of offline keys; default is in the hub's home.")
@pass_context
def sign(ctx: Context, keys: Path | None) -> None:
    """Sign all release metadata that waits for the keys on this machine."""
    from hub.client.publish import sign_pending

    with HubClient.local(ctx.home) as hub:
        done = sign_pending(hub, keys or HubHome(ctx.home).keys)
    told = [{k: p[k] for k in ("role", "version", "signed", "threshold", "complete")} for p in done]
    emit(ctx, told, _show_proposals)


@group.command("list")
@click.option("--model", help="Only versions of this model.")
@pass_context
def list_(ctx: Context, model: str | None) -> None:
    """All released versions."""
    with HubClient.local(ctx.home) as hub:
        answer = hub.get("/models", model=model)
    emit(ctx, answer, _show_versions)


@group.command()
@click.argument("ref", metavar="MODEL@VERSION")
@pass_context
def show(ctx: Context, ref: str) -> None:
    """One released version: terms, claims, digests."""
    asked = ModelRef.parse(ref)
    with HubClient.local(ctx.home) as hub:
        answer = hub.get(f"/models/{asked.name}/{asked.version}")
    emit(ctx, answer, _show_version)


@group.command()
@click.argument("ref", metavar="MODEL@VERSION")
@pass_context
def verify(ctx: Context, ref: str) -> None:
    """Pull a version and check every byte and its publisher's signature, as a spoke would."""
    from hub.client.publish import verify as verify_version

    with HubClient.local(ctx.home) as hub:
        told = verify_version(hub, ModelRef.parse(ref), HubHome(ctx.home).packages)
    emit(
        ctx,
        told,
        lambda t: out.print(
            f"{t['model']}: {t['files']} files, {t['bytes']} bytes, signed by {t['publisher']} ({t['signed_by']})"
        ),
    )


@group.command()
@click.argument("ref", metavar="MODEL@VERSION")
@click.option("--keys", type=click.Path(path_type=Path), help="Folder of offline keys; default is in the hub's home.")
@pass_context
def deny(ctx: Context, ref: str, keys: Path | None) -> None:
    """Put a version on the deny list, which wins over every release and grant."""
    from hub.client.publish import sign as sign_one

    asked = ModelRef.parse(ref)
    with HubClient.local(ctx.home) as hub:
        version = hub.get(f"/models/{asked.name}/{asked.version}")
        done = sign_one(hub, hub.post("/deny", {"digests": [version["index"]]}), keys or HubHome(ctx.home).keys)
    emit(ctx, [{k: done[k] for k in ("role", "version", "signed", "threshold", "complete")}], _show_proposals)


def _show_built(built: dict[str, Any]) -> None:
    rows = (
        (v["variant"], v["bytes"], f"{v['score']:.4f}", f"{v['latency_ms_batch1']:.3f}", v["recipe"]) for v in built["variants"]
    )
    table(("variant", "bytes", "score", "ms", "recipe"), rows)
    out.print(f"{built['model']} is in {built['folder']}. Release it with [bold]hub model publish {built['model']}[/].")


def _show_published(told: dict[str, Any]) -> None:
    state = "released" if told["complete"] else f"waits: {told['signatures']} signatures (`hub model sign`)"
    out.print(f"{told['model']}  {state}  {told['index']}")
    for delta in told["deltas"]:
        out.print(f"delta {delta['base'][:19]} -> {delta['target'][:19]}: {delta['bytes']} of {delta['of']} bytes")


def _show_proposals(proposals: list[dict[str, Any]]) -> None:
    rows = (
        (p["role"], p["version"], f"{p['signed']} of {p['threshold']}", "published" if p["complete"] else "") for p in proposals
    )
    table(("role", "version", "signed", ""), rows)


def _show_versions(versions: list[dict[str, Any]]) -> None:
    rows = (
        (
            f"{v['model']}@{v['version']}{' (denied)' if v['denied'] else ''}",
            v["title"],
            _claims(v),
            ", ".join(v["zones"]),
            v["published"][:19],
        )
        for v in versions
    )
    table(("version", "title", "claims", "zones", "released"), rows)


def _show_version(version: dict[str, Any]) -> None:
    _show_versions([version])
    back = ", ".join(str(f) for f in version["fallback"]) or "nowhere"
    out.print(f"index {version['index']}")
    out.print(f"signature {version['signature']}")
    out.print(f"regimes {', '.join(version['regimes'])}; may go back to {back}")
    if version["overridden_by"]:
        out.print(f"[bold red]accuracy gate overridden by {version['overridden_by']}[/]")
    _show_classes(version)


def _show_classes(version: dict[str, Any]) -> None:
    """What the package says of classes of CPU, and what the fleet measures on them."""
    claims = [
        (c["cpu_class"], c["variant"], way(c), _verdict(c), _number(c["worst"]), _number(c["score"]))
        for c in sorted(version["claimed"], key=lambda c: c["cpu_class"])
    ]
    if claims:
        table(("by its evidence", "variant", "engine", "", "of what is allowed", "score"), claims)
    seen = [
        (m["cpu_class"], m["variant"], way(m), m["spokes"], micros(m["latency_us"]), micros(m["row_us"]), _best(m))
        for m in version["measured"]
    ]
    if seen:
        table(("by CPU class", "variant", "engine", "spokes", "one row", "a row of 32", ""), seen)


def _verdict(claimed: dict[str, Any]) -> str:
    return "right" if claimed["right"] else "did not run" if claimed["worst"] is None else "off"


def _best(measured: dict[str, Any]) -> str:
    return "best" if measured["best"] else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _claims(version: dict[str, Any]) -> str:
    return ", ".join(f"{name} {score:.3f}" for name, score in version["claims"].items())
