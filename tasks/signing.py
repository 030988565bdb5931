"""Signatures over a stored model, by OpenSSF's model-signing in key mode.

A signature is a Sigstore bundle (a DSSE envelope round an in-toto statement) that names every file
of the folder with its sha256, the lineage record among them. It needs no network and no account: a
pair of elliptic-curve keys in PEM is enough, and `model_signing verify key` reads the same file.
The package is an optional extra, `stillmark[signing]`.

Two kinds of files come into a stored folder by its mere use and are not signed: MLflow's note of
the name that a model was fetched by, and the bytecode that Python makes of the code beside a model.
The first says nothing that is run; the second has to be what the signed source compiles to.
"""

import base64
import json
import marshal
from collections.abc import Iterator
from importlib.util import source_from_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from tasks.errors import ArtifactError, SetupError
from tasks.lineage.digests import digests_of_folder
from tasks.lineage.record import FILE_NAME, Record

if TYPE_CHECKING:
    from model_signing import hashing

SIGNATURE_FILE = "model.sig"
CURVE = "secp256r1"
MLFLOW_NOTE = "registered_model_meta"
HEADER_BYTES = 16  # of a .pyc file: magic number, flags, and what tells whether it is stale
MISMATCH = "Signature mismatch"
PRIVATE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
PUBLIC = "openssl ec -in key.pem -pubout -out key.pub"


def sign(folder: Path, key: Path, signature: Path, password: SecretStr | None = None) -> Path:
    """Signs every file of a stored model.

    Args:
        folder: The model as stored, `record.json` included.
        key: Private key (EC P-256, PEM).
        signature: File to write; outside `folder`, all of whose files it names.
        password: Of the key, where it is encrypted.

    Returns:
        `signature`.

    Raises:
        SetupError: The package is missing, the key cannot be used, or the file cannot be written.
        ArtifactError: The folder is no finished model, its files are not as recorded, or it holds
            a link or a file that the record does not name.
    """
    _need_package()
    from model_signing import signing  # noqa: PLC0415 - an optional extra

    secret = password.get_secret_value().encode() if password else None
    _refuse_private(key, secret)
    _refuse_unfinished(folder)
    if signature.resolve().is_relative_to(folder.resolve()):
        raise SetupError(f"{signature} would lie in the folder that it signs; write it elsewhere")
    # The package is annotated with str and hands on what needs bytes.
    signer = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)  # pyright: ignore[reportArgumentType]
    try:
        signer.set_hashing_config(_hashing(folder)).sign(folder.resolve(), signature)
    except ValueError as error:
        raise ArtifactError(f"{folder} cannot be signed: {error}") from None
    except OSError as error:
        raise SetupError(f"{signature} cannot be written: {error.strerror}") from None
    return signature


def refuse_key(key: Path, password: SecretStr | None = None) -> None:
    """Lets only what `sign` can sign with pass, before any work starts.

    Raises:
        SetupError: The package is missing, or the key cannot be used.
    """
    _need_package()
    _refuse_private(key, password.get_secret_value().encode() if password else None)


def check_signature(folder: Path, signature: Path, public_key: Path) -> None:
    """Checks that a folder holds exactly the files that the owner of a key signed.

    Args:
        folder: The model as stored.
        signature: What `sign` wrote.
        public_key: The signer's public key (EC P-256, PEM), from a place of its own: one that lies
            beside the signature proves nothing.

    Raises:
        SetupError: The package is missing, or the key cannot be used.
        ArtifactError: The signature is missing or damaged, was made with another key, or a file was
            changed, removed or added since.
    """
    _need_package()
    _refuse_public(public_key)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is missing; there is nothing that a signature could fit")
    signed = _signed(signature)
    _verify(folder, signature, public_key, signed)
    # The package lets a signature name files to pass over; here none are but by-products.
    if added := sorted(_files(folder) - signed.keys()):
        raise _misfit(folder, signature, f"{', '.join(added)}: not signed")


def _refuse_unfinished(folder: Path) -> None:
    record = Record.read(folder)
    record.check(folder)
    if others := sorted(_files(folder) - record.files.keys() - {FILE_NAME}):
        raise ArtifactError(
            f"{folder} holds what its record does not name: {', '.join(others)}; remove it first"
        )


def _files(folder: Path) -> set[str]:
    """Every file of a folder that a signature has to speak of."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files} - _by_products(folder)


def _by_products(folder: Path) -> set[str]:
    """Files that the use of a stored model leaves in its folder."""
    found = {MLFLOW_NOTE} if (folder / MLFLOW_NOTE).is_file() else set()
    compiled = (path for path in folder.rglob("__pycache__/*.pyc") if _is_compiled(path))
    return found | {path.relative_to(folder).as_posix() for path in compiled}


def _is_compiled(path: Path) -> bool:
    """Whether bytecode of this Python is what the source beside it compiles to."""
    try:
        source = Path(source_from_cache(str(path)))
        expected = compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
        # Equal code objects run equally, wherever they were compiled.
        return marshal.loads(path.read_bytes()[HEADER_BYTES:]) == expected  # noqa: S302 - not run
    except (ValueError, EOFError, TypeError, SyntaxError, OSError):
        return False


def _verify(folder: Path, signature: Path, public_key: Path, signed: dict[str, str]) -> None:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an optional extra
    from model_signing import verifying  # noqa: PLC0415 - an optional extra

    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        verifier.set_hashing_config(_hashing(folder)).verify(folder.resolve(), signature)
    except InvalidSignature:
        raise ArtifactError(
            f"{signature} was not made with the key of {public_key}, or was changed since"
        ) from None
    # A bundle whose parts are missing or of another type fails wherever the package meets it first.
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        if reason.startswith(MISMATCH):
            reason = "; ".join(_differences(folder, signed))
        raise _misfit(folder, signature, reason) from None


def _misfit(folder: Path, signature: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{folder} does not fit its signature {signature}: {reason}")


def _differences(folder: Path, signed: dict[str, str]) -> Iterator[str]:
    """Which files are not as signed, and how."""
    found = {name: digest.sha256 for name, digest in digests_of_folder(folder).items()}
    for name in sorted(_files(folder) | signed.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in signed:
            yield f"{name}: not signed"
        elif found[name] != signed[name]:
            yield f"{name} has sha256 {found[name]}, signed {signed[name]}"


def _signed(signature: Path) -> dict[str, str]:
    """sha256 of every file that a signature speaks of, by its own word: not verified yet."""
    try:
        bundle: Any = json.loads(signature.read_bytes())
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        resources = statement["predicate"]["resources"]
        return {str(resource["name"]): str(resource["digest"]) for resource in resources}
    except FileNotFoundError:
        raise ArtifactError(f"{signature} is missing; the model was not signed") from None
    except (ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{signature} is no whole signature of a model ({type(error).__name__}); fetch it again"
        ) from None


def _hashing(folder: Path) -> "hashing.Config":
    """Every file counts but by-products; the package would pass over .gitignore and the like."""
    from model_signing import hashing  # noqa: PLC0415 - an optional extra

    paths = sorted(_by_products(folder))
    return hashing.Config().set_ignored_paths(paths=paths, ignore_git_paths=False)


def _need_package() -> None:
    try:
        import model_signing.signing  # noqa: PLC0415
        import model_signing.verifying  # noqa: F401, PLC0415
    except ImportError as error:
        raise SetupError(
            f"signing needs a package that is not here ({error.name}); "
            "run `pip install 'stillmark[signing]'`"
        ) from None


def _refuse_private(path: Path, password: bytes | None) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(_pem(path, PRIVATE), password)
    except (ValueError, TypeError) as error:
        raise SetupError(
            f"{path} cannot be used as a private key: {_first_sentence(error)}; expected PEM, for "
            f"example of `{PRIVATE}`"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != CURVE:
        raise SetupError(f"{path} is no key on the curve P-256; make one with `{PRIVATE}`")


def _refuse_public(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        key = load_pem_public_key(_pem(path, PUBLIC))
    except ValueError as error:
        raise SetupError(
            f"{path} cannot be used as a public key: {_first_sentence(error)}; expected PEM, for "
            f"example of `{PUBLIC}`"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE:
        raise SetupError(f"{path} is no key on the curve P-256; take that of `{PUBLIC}`")


def _pem(path: Path, command: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"the key {path} cannot be read ({error.strerror}); `{command}`") from None


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
