"""Signatures of bundles: who exported one, and that nothing was changed, added or taken away since.

`bundle.json` holds the sha256 of every other file, so a signature of it is one of all (Ed25519, RFC 8032).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ..pipelines.bundle import MANIFEST, BundleInfo, check_files, read_info
from ..workflows.errors import EaglerayError

SIGNATURE = "bundle.sig"
"""File of a signature, 64 bytes; no part of what is signed."""
CONTEXT = b"eagleray bundle 1\0"
"""Comes first in what is signed, so that a signature means nothing elsewhere."""


def make_keys(private: Path, public: Path) -> None:
    """Make a pair of keys, as PEM files; the private one is its owner's to read.

    Raises:
        EaglerayError: when there is such a file.
    """
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    told = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for path, text, mode in ((private, content, 0o600), (public, told, 0o644)):
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(text)
        except FileExistsError:
            raise EaglerayError(
                "there is a key already, and what it signed needs it", "name another file", str(path)
            ) from None


def sign(folder: Path, key: Path) -> None:
    """Sign the bundle in a folder, after checking that it is whole.

    Raises:
        EaglerayError: when it isn't, or the key can't be read.
    """
    _check_whole(folder, read_info(folder))
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(key, error) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _no_key(key, "it is of another kind")
    (folder / SIGNATURE).write_bytes(private.sign(CONTEXT + (folder / MANIFEST).read_bytes()))


class Trust:
    """Whose bundles are taken: those that one of these keys signed.

    Args:
        keys: PEM files of public keys.

    Raises:
        EaglerayError: when one can't be read.
    """

    def __init__(self, keys: Sequence[Path]) -> None:
        self._keys = [_public(path) for path in keys]

    def check(self, manifest: bytes, signature: bytes | None, where: str) -> None:
        """Check the signature of a `bundle.json`.

        Raises:
            EaglerayError: when there is none, or none of the keys made it for this content.
        """
        if signature is None:
            raise EaglerayError(
                "the bundle is not signed", "sign it: eagleray edge sign BUNDLE --key KEY", where
            )
        for key in self._keys:
            try:
                key.verify(signature, CONTEXT + manifest)
            except InvalidSignature:
                continue
            return
        raise EaglerayError(
            "no trusted key has signed this bundle, or its bundle.json was changed since",
            "get it anew from who signed it",
            where,
        )

    def check_folder(self, folder: Path) -> None:
        """Check a whole bundle: its signature, and that its files are those that were signed.

        Raises:
            EaglerayError: when one was changed, added or taken away.
        """
        info = read_info(folder)
        path = folder / SIGNATURE
        signature = path.read_bytes() if path.is_file() else None
        self.check((folder / MANIFEST).read_bytes(), signature, str(folder))
        _check_whole(folder, info)


def _check_whole(folder: Path, info: BundleInfo) -> None:
    check_files(folder, info)
    added = {path.name for path in folder.iterdir()} - {*info.files, MANIFEST, SIGNATURE}
    if added:
        raise EaglerayError(
            f"{min(added)} is no part of the bundle", "take it away, or export the bundle again", str(folder)
        )


def _public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "it is of another kind")
    return key


def _no_key(path: Path, why: object) -> EaglerayError:
    return EaglerayError(
        f"this is no Ed25519 key in PEM: {why}", "make a pair: eagleray edge keys NAME", str(path)
    )
