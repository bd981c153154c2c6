"""Signing and verifying: `sign`, `attest`, `verify`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semlens_audit.cli.shell import AllowCode, AsJson, print_json, say, verb
from semlens_audit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from semlens_audit.signing_keys import SigningKey

__all__ = ["attest", "sign", "verify"]

_KEY, _TOKEN, _LOOK = "Key in a file", "Key on a token (PKCS #11)", "Look at more"
PassphraseEnv = Annotated[
    str | None, typer.Option(metavar="VAR", help="Environment variable that holds the passphrase or PIN.", rich_help_panel=_KEY)
]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File whose first line is the passphrase or PIN.", rich_help_panel=_KEY)
]


def _passphrase(variable: str | None, file: Path | None, ask: str | None) -> str | None:
    """The passphrase from where the user keeps it; asked for at a terminal where neither is given and `ask` says for what."""
    if variable is not None and file is not None:
        raise UsageError("two-passphrases", "Both --passphrase-env and --passphrase-file are given.", "Give one of them.")
    if variable is not None:
        value = os.environ.get(variable)
        if value is None:
            raise UsageError("no-passphrase", f"The environment variable {variable} is not set.", "Set it, or leave the option out.")
        return value
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").split("\n", 1)[0].removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            said = f"The passphrase cannot be read: {error}."
            raise UsageError("no-passphrase", said, "Give a text file.", file=str(file)) from error
    if ask is None:
        return None
    with contextlib.suppress(typer.Abort):
        return str(typer.prompt(ask, hide_input=True, err=True, default="", show_default=False))
    raise UsageError("no-passphrase", "No passphrase was given.", "Use --passphrase-env or --passphrase-file where nobody can type.")


@contextlib.contextmanager
def _signing_key(
    p12: Path | None,
    key: Path | None,
    cert: Path | None,
    chain: list[Path],
    library: Path | None,
    token_label: str | None,
    key_label: str | None,
    cert_label: str | None,
    variable: str | None,
    file: Path | None,
) -> Iterator[SigningKey]:
    from semlens_audit import signing_keys

    if sum(one is not None for one in (p12, key, library)) != 1:
        hint = "Give one of --p12 FILE, --key FILE with --cert FILE, or --pkcs11-lib MODULE with --token-label and --key-label."
        raise UsageError("which-key", "It is not clear which key to sign with.", hint)
    if p12 is not None:
        asked = _passphrase(variable, file, f"Passphrase of {p12.name}")
        yield signing_keys.from_pkcs12(p12, asked.encode() if asked else None)
    elif key is not None:
        if cert is None:
            raise UsageError("no-certificate", "A key in PEM needs its certificate.", "Give it with --cert FILE.")
        encrypted = key.is_file() and b"ENCRYPTED" in key.read_bytes()[:4096]
        asked = _passphrase(variable, file, f"Passphrase of {key.name}" if encrypted else None)
        yield signing_keys.from_pem(key, cert, chain, asked.encode() if asked else None)
    elif library is not None:
        if token_label is None or key_label is None:
            raise UsageError("which-key", "A token and a key on it have to be named.", "Give --token-label and --key-label.")
        pin = _passphrase(variable, file, f"PIN of {token_label}")
        with signing_keys.from_pkcs11(library, token_label, key_label, cert, cert_label, pin or None) as found:
            yield found


@verb(
    rich_help_panel="Release",
    epilog="Example: semlens-audit sign reports/phantom-clean/report.pdf --as 'Dr. Ada Example' --p12 ada.p12",
)
def sign(
    report: Annotated[Path, typer.Argument(metavar="REPORT.pdf", help="The report as `run` or `report` wrote it, or signed by others.")],
    person: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Who signs: a name under `responsible` in the audit file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: NAME.signed.pdf beside NAME.pdf.")] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Close the document although not all responsible persons have signed.")
    ] = False,
    timestamp_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Time stamp authority (RFC 3161) to have the time of signing attested by.")
    ] = None,
    p12: Annotated[Path | None, typer.Option(help="PKCS #12 file with key and certificates.", rich_help_panel=_KEY)] = None,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM).", rich_help_panel=_KEY)] = None,
    cert: Annotated[Path | None, typer.Option(help="Its certificate (PEM).", rich_help_panel=_KEY)] = None,
    chain: Annotated[
        list[Path] | None, typer.Option(help="Certificates of authorities (PEM); may be repeated.", rich_help_panel=_KEY)
    ] = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    pkcs11_lib: Annotated[
        Path | None, typer.Option("--pkcs11-lib", help="Module of the token's maker.", rich_help_panel=_TOKEN)
    ] = None,
    token_label: Annotated[str | None, typer.Option(help="Label of the token.", rich_help_panel=_TOKEN)] = None,
    key_label: Annotated[str | None, typer.Option(help="Label of the private key.", rich_help_panel=_TOKEN)] = None,
    cert_label: Annotated[
        str | None, typer.Option(help="Label of the certificate on the token, if not that of the key.", rich_help_panel=_TOKEN)
    ] = None,
) -> None:
    """Sign a report (PAdES, invisible), one responsible person at a time.

    The PDF must be what this version renders from the record that it carries; anything else is refused. The first signature
    certifies the document, the signature of the last responsible person closes it: no further change is permitted then. The
    signed file begins with the bytes of the unsigned one and stays PDF/A-3 and PDF/UA-1.

    Passphrases are asked for, or read from an environment variable or a file; they never stand on the command line.
    """
    from semlens_audit import signing
    from semlens_audit.report import replace

    target = out or (report if report.name.endswith(".signed.pdf") else report.with_suffix(".signed.pdf"))
    try:
        data = report.read_bytes()
    except OSError as error:
        raise UsageError("no-report", f"The report cannot be read: {error.strerror}.", "Check the path.", file=str(report)) from error
    authority = signing.TimeStampAuthority(timestamp_url) if timestamp_url else None
    with _signing_key(
        p12, key, cert, chain or [], pkcs11_lib, token_label, key_label, cert_label, passphrase_env, passphrase_file
    ) as found:
        signed = signing.sign_report(data, found, name=person, final=final, authority=authority, file=str(report))
    replace(target, signed.data)
    say(f"{target}: signed by {signed.person.name}, {signed.person.role}, with the certificate of {found.subject}")
    if signed.final:
        say("The document is closed: no further change or signature is permitted.")
    else:
        say(f"Yet to sign: {', '.join(signed.missing)}")


@verb(
    rich_help_panel="Release",
    epilog="Example: semlens-audit attest reports/phantom-clean/results.json --key attest.pem",
)
def attest(
    record_file: Annotated[
        Path | None, typer.Argument(metavar="RESULTS.json", help="Record that a run has written, or a report beside it.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Ed25519 private key (PEM).", rich_help_panel=_KEY)] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make a key pair: FILE and FILE.pub; never overwrites.", rich_help_panel=_KEY),
    ] = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: results.intoto.json beside the record.")] = None,
) -> None:
    """Attest what an audit found: an in-toto test-result statement in a DSSE envelope, signed with Ed25519.

    The statement binds the result and the name of every finding, by SHA-256, to the record, to the reports beside it, to the
    audited model's weights, and to spec and audit file. With --new-key, makes a key pair first; keep the private key, hand out
    the public one. The same record and key give the same bytes.
    """
    from semlens_audit import attest as attestation
    from semlens_audit.report import replace

    asked = None if key is None and new_key is None else _ed25519_passphrase(key, new_key, passphrase_env, passphrase_file)
    if new_key is not None:
        if key is not None:
            raise UsageError("which-key", "Both --key and --new-key are given.", "Give one of them.")
        public = attestation.new_key(new_key, asked)
        protected = "encrypted with the passphrase" if asked else "not encrypted; only its owner can read it"
        say(f"{new_key}: private key ({protected})\n{public}: public key, for the trust list of those who verify")
        key = new_key
    if record_file is None:
        if new_key is None:
            raise UsageError("no-record", "There is nothing to attest.", "Give the results.json that `run` wrote.")
        return
    if key is None:
        raise UsageError("which-key", "There is no key to attest with.", "Give --key FILE, or make one with --new-key FILE.")
    results = record_file if record_file.suffix == ".json" else record_file.with_name(attestation.RESULTS)
    target = out or results.with_name(attestation.ENVELOPE)
    replace(target, attestation.attest(results, attestation.read_key(key, asked)))
    say(str(target))


def _ed25519_passphrase(key: Path | None, new_key: Path | None, variable: str | None, file: Path | None) -> bytes | None:
    encrypted = key is not None and key.is_file() and b"ENCRYPTED" in key.read_bytes()[:100]
    asked = _passphrase(variable, file, f"Passphrase of {key.name}" if encrypted and key is not None else None)
    return asked.encode() if asked else None


@verb(
    rich_help_panel="Release",
    epilog="Example: semlens-audit verify report.signed.pdf --trust hospital-ca.pem",
)
def verify(
    file: Annotated[Path, typer.Argument(help="A report (PDF or HTML), a record (results.json) or an attestation (results.intoto.json).")],
    trust: Annotated[
        list[Path] | None,
        typer.Option(help="PEM file, or folder of them: certificates and Ed25519 public keys that you trust; may be repeated."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="RESULTS.json", help="Record of an HTML report; default: the one beside it.")
    ] = None,
    envelope: Annotated[
        Path | None, typer.Option(help="Attestation of a file that is not signed itself; default: the one beside it.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Weights to compare with the audited model's.", rich_help_panel=_LOOK)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="AUDIT.yaml", help="Audit file whose test data to compare.", rich_help_panel=_LOOK)
    ] = None,
    crl: Annotated[
        list[Path] | None,
        typer.Option(help="Certificate revocation list; may be repeated. All certificates then need one.", rich_help_panel=_LOOK),
    ] = None,
    today: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="Day on which waivers are judged; default: today.", rich_help_panel=_LOOK)
    ] = None,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Look at the rest of a file that is neither signed nor attested.")
    ] = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Verify a file with nothing but the file and a list of whom you trust.

    Signatures and certificates; the files that a PDF carries; every finding, the verdict and the decision on the release made
    again from the measurements; the document rendered again and compared. Says what is proven and what is not. Asks no network;
    the trust list replaces the system's.

    Exits 0 when nothing is refused, 6 when anything is, 5 when a waiver has expired since.
    """
    from semlens_audit import verify as verifying
    from semlens_audit.trust import read_revocation_lists, read_trust
    from semlens_audit.verify_screen import print_verification

    now = datetime.now(UTC)
    day = _day(today) if today else None
    further = []
    if model is not None or data is not None:
        from semlens_audit import verify_subject

        further += [verify_subject.model_question(model, allow_code=allow_code)] if model is not None else []
        further += [verify_subject.data_question(data)] if data is not None else []
    request = verifying.Request(
        trust=read_trust(trust or []),
        now=now if day is None or day <= now.date() else datetime.combine(day, time(), UTC),
        today=day,
        revocation_lists=read_revocation_lists(crl or []),
        allow_unsigned=allow_unsigned,
        further=tuple(further),
    )
    found = verifying.verify(file, request, record=record, envelope=envelope)
    if as_json:
        print_json(found.model_dump(mode="json") | {"exit_code": int(found.exit_code)})
    else:
        print_verification(found)
    return found.exit_code


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageError("bad-date", f"{text!r} is no date.", "Write it as YYYY-MM-DD.") from error
