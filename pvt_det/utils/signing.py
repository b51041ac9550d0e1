"""Sign the files of a folder with a private key, and verify its signature, without a network.

The signature is a file in the format of Sigstore's `model-signing`, which is an optional requirement.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.utils.extras import require_packages
from pvt_det.utils.paths import file_fault

logger = logging.getLogger(__name__)

SIGNATURE_NAME = "model.sig"
# Written by huggingface_hub when it downloads a folder, so not signed. model-signing leaves out .git* on its own.
_UNSIGNED = (".cache",)
_MAX_SIGNATURE_BYTES = 2**24
# model-signing imports it without requiring it.
_MODULES = ("model_signing", "OpenSSL")


class FolderSigner:
    """Signs folders with a private key, which is read when the signer is created.

    Args:
        private_key: PEM file of an elliptic-curve key (P-256, P-384 or P-521) without a password.

    Raises:
        ConfigError: The package `model-signing` is missing, or the key cannot be used.
    """

    def __init__(self, private_key: Path) -> None:
        require_packages("A signature", *_MODULES, extra="signing")
        from model_signing import signing

        _require_key(private_key, "private")
        try:
            self._config = signing.Config().use_elliptic_key_signer(private_key=private_key)
        # The package and its cryptography library raise many kinds of errors for a key that they cannot use.
        except Exception as error:
            raise ConfigError(f"{private_key} cannot be used as a private key: {error}. {_key_help()}") from error
        self._key = private_key

    def sign(self, folder: Path) -> Path:
        """Sign all files of a folder, and write the signature into it, replacing an earlier one.

        Args:
            folder: The folder. Links in it are refused.

        Returns:
            Path of the signature.

        Raises:
            ConfigError: The private key is in the folder, or a file cannot be signed.
        """
        from model_signing import hashing

        signature = folder / SIGNATURE_NAME
        if folder.resolve() in self._key.resolve().parents:
            raise ConfigError(f"The private key {self._key} is in the folder to share, {folder}. Move it elsewhere.")
        signature.unlink(missing_ok=True)
        hashed = hashing.Config().set_ignored_paths(paths=[*_UNSIGNED, SIGNATURE_NAME])
        try:
            self._config.set_hashing_config(hashed).sign(folder, signature)
        except ValueError as error:  # a link or a special file
            raise ConfigError(f"{folder} cannot be signed: {error}") from error
        return signature


def verify_folder(folder: Path, public_key: Path) -> None:
    """Verify that a folder holds exactly the files that were signed with a key.

    Args:
        folder: The folder, with a signature that `FolderSigner` or `model_signing` wrote.
        public_key: PEM file of the public key that belongs to the signer's private key.

    Raises:
        CheckpointError: The folder is not signed, was signed with another key, or was changed.
        ConfigError: The package `model-signing` is missing, or the key cannot be used.
    """
    require_packages("A signature", *_MODULES, extra="signing")
    from model_signing import verifying

    _require_key(public_key, "public")
    signature = folder / SIGNATURE_NAME
    if fault := file_fault(signature):
        raise CheckpointError(f"{folder} is not signed: {signature} {fault}. Ask its author to sign it.")
    if signature.stat().st_size > _MAX_SIGNATURE_BYTES:
        raise CheckpointError(f"{signature} is not a signature: it has more than {_MAX_SIGNATURE_BYTES:,} bytes.")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise ConfigError(f"{public_key} cannot be used as a public key: {error}. {_key_help()}") from error
    try:
        config.verify(folder, signature)
    # A damaged signature can raise nearly any exception.
    except Exception as error:
        reason = str(error)[:500] or "the signature is not valid"
        raise CheckpointError(
            f"The signature of {folder} does not match: {reason}. The folder was changed or signed with another key. "
            "Get it again from its author."
        ) from error
    logger.info("%s holds the files that were signed with the key of %s.", folder, public_key)


def verify_signed(public_key: str | Path, *files: Path) -> None:
    """Verify the signature of the folder that some files are in, before they are read.

    Args:
        public_key: PEM file of the public key. "" verifies nothing, and warns if the folder has a signature.
        *files: The files, at least one, all in one folder.

    Raises:
        CheckpointError: The folder is not signed, was signed with another key, or was changed.
        ConfigError: The files are in different folders, the package `model-signing` is missing, or the key cannot be
            used.
    """
    folder = files[0].parent
    if not public_key:
        if (folder / SIGNATURE_NAME).is_file():
            logger.warning(
                "%s is signed, but its signature is not verified. Add --public-key FILE to verify it.", folder
            )
        return
    for file in files:
        if file.parent.resolve() != folder.resolve() or file_fault(file):
            raise ConfigError(
                f"{file} is not a file in {folder}, whose signature is to be verified. With a public key, the config "
                "and the weights must be files in one signed folder."
            )
    verify_folder(folder, Path(public_key))


def _require_key(path: Path, kind: str) -> None:
    if fault := file_fault(path):
        raise ConfigError(f"{kind} key {path} {fault}. {_key_help()}")


def _key_help() -> str:
    return (
        "Expected a PEM file of an elliptic-curve key without a password. Make a pair with openssl ecparam -name "
        "prime256v1 -genkey -noout -out private.pem, and openssl ec -in private.pem -pubout -out public.pem."
    )
