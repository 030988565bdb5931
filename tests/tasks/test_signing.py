import base64
import json
import py_compile
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import signing
from pydantic import SecretStr

from tasks.errors import ArtifactError, SetupError
from tasks.lineage.digests import digest_of_files, digests_of_folder
from tasks.lineage.record import Code, Record
from tasks.refs import DataRef
from tasks.signing import check_signature, sign


def pem(key, password=b""):
    locked = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


def public_pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """A folder with two pairs of keys on P-256, and some that are of no use."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(pem(key))
        (folder / f"{name}.pub").write_bytes(public_pem(key))
        if name == "ours":
            (folder / "locked.pem").write_bytes(pem(key, b"secret"))
    others = {"rsa": rsa.generate_private_key(65537, 2048), "p384": None}
    others["p384"] = ec.generate_private_key(ec.SECP384R1())
    for name, key in others.items():
        (folder / f"{name}.pem").write_bytes(pem(key))
        (folder / f"{name}.pub").write_bytes(public_pem(key))
    (folder / "words.pem").write_text("no key")
    (folder / "words.pub").write_text("no key")
    return folder


def store(folder, weights):
    """A model as MLflow stores it: files, code, and the record that names them."""
    (folder / "data").mkdir(parents=True)
    (folder / "code").mkdir()
    (folder / "data" / "model.onnx").write_bytes(weights)
    (folder / "code" / "serve.py").write_text("def serve(row):\n    return row * 2.5\n")
    files = digests_of_folder(folder)
    sha = "0" * 64
    Record(
        stage="quantize",
        role="edge",
        key=sha,
        data=DataRef(raw="r.dir", prepared="p.dir", manifest=sha, content=sha),
        code=Code(digest=sha, commit=None, clean=False),
        parameters={},
        environment={},
        parents=(),
        files=files,
        content=digest_of_files(files),
        metrics={},
    ).write(folder)
    return folder


@pytest.fixture
def stored(tmp_path):
    return store(tmp_path / "model", bytes(range(256)) * 40)


@pytest.fixture
def signature(stored, keys, tmp_path):
    return sign(stored, keys / "ours.pem", tmp_path / "model.sig")


def refused(stored, signature, keys, words):
    """The one line with which a check fails."""
    with pytest.raises(ArtifactError, match=words) as caught:
        check_signature(stored, signature, keys / "ours.pub")
    assert len(str(caught.value).splitlines()) == 1


def test_a_right_signature_is_verified(stored, signature, keys):
    check_signature(stored, signature, keys / "ours.pub")


def test_a_copy_elsewhere_is_the_same_model(stored, signature, keys, tmp_path):
    copy = shutil.copytree(stored, tmp_path / "elsewhere" / "copy")
    check_signature(copy, signature, keys / "ours.pub")


def test_a_locked_key_needs_its_password(stored, keys, tmp_path):
    target = tmp_path / "model.sig"
    with pytest.raises(SetupError, match="cannot be used as a private key"):
        sign(stored, keys / "locked.pem", target)
    with pytest.raises(SetupError, match="cannot be used as a private key"):
        sign(stored, keys / "locked.pem", target, SecretStr("guess"))
    assert not target.exists()
    check_signature(
        stored, sign(stored, keys / "locked.pem", target, SecretStr("secret")), keys / "ours.pub"
    )


def test_the_packages_own_command_reads_it(stored, signature, keys):
    words = ["verify", "key", stored, "--signature", signature, "--public_key", keys / "ours.pub"]
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["record.json", "data/model.onnx"])
@pytest.mark.parametrize("at", [0, 10, -1])
def test_one_flipped_byte_is_found_and_its_file_named(stored, signature, keys, name, at):
    path = stored / name
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    refused(stored, signature, keys, f"{name} has sha256 {sha256(content).hexdigest()}, signed ")


def test_a_missing_file_is_found(stored, signature, keys):
    (stored / "data" / "model.onnx").unlink()
    refused(stored, signature, keys, r"data/model\.onnx is missing")


@pytest.mark.parametrize("name", ["extra.py", "data/extra.py", ".gitignore", ".git/hook"])
def test_an_added_file_is_found_hidden_or_not(stored, signature, keys, name):
    (stored / name).parent.mkdir(exist_ok=True)
    (stored / name).write_text("surprise")
    refused(stored, signature, keys, f"{name}: not signed")


def test_files_that_a_signature_leaves_out_count_as_added(stored, keys, tmp_path):
    """As the package's own command signs by default."""
    target = tmp_path / "model.sig"
    signing.Config().use_elliptic_key_signer(private_key=keys / "ours.pem").sign(stored, target)
    check_signature(stored, target, keys / "ours.pub")
    (stored / ".gitignore").write_text("surprise")
    refused(stored, target, keys, r"\.gitignore: not signed")


def test_another_key_is_refused(stored, signature, keys):
    with pytest.raises(ArtifactError, match="Key mismatch"):
        check_signature(stored, signature, keys / "theirs.pub")


def test_another_key_that_claims_to_be_ours_is_refused(stored, signature, keys, tmp_path):
    theirs = sign(stored, keys / "theirs.pem", tmp_path / "theirs.sig")
    forged = json.loads(theirs.read_text())
    forged["verificationMaterial"] = json.loads(signature.read_text())["verificationMaterial"]
    theirs.write_text(json.dumps(forged))
    refused(stored, theirs, keys, "was not made with the key")


def test_a_signature_of_other_files_does_not_fit(stored, signature, keys, tmp_path):
    other = store(tmp_path / "other", b"other")
    second = sign(other, keys / "ours.pem", tmp_path / "other.sig")
    refused(stored, second, keys, r"data/model\.onnx has sha256")


def test_a_truncated_signature_is_refused_wherever_it_ends(stored, signature, keys):
    content = signature.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        signature.write_bytes(content[:length])
        refused(stored, signature, keys, "no whole signature")


@pytest.mark.parametrize("part", ["payload", "sig"])
def test_a_signature_with_any_byte_changed_is_refused(stored, signature, keys, part):
    bundle = json.loads(signature.read_text())
    envelope = bundle["dsseEnvelope"]
    place = envelope if part == "payload" else envelope["signatures"][0]
    content = base64.b64decode(place[part])
    for at in range(0, len(content), 7):
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        place[part] = base64.b64encode(changed).decode()
        signature.write_text(json.dumps(bundle))
        refused(stored, signature, keys, "was not made with the key|no whole signature")


@pytest.mark.parametrize("part", ["verificationMaterial", "dsseEnvelope", "mediaType"])
def test_a_signature_that_lacks_a_part_is_refused(stored, signature, keys, part):
    bundle = json.loads(signature.read_text())
    del bundle[part]
    signature.write_text(json.dumps(bundle))
    refused(stored, signature, keys, str(signature))


def test_a_signature_without_signatures_is_refused(stored, signature, keys):
    bundle = json.loads(signature.read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    signature.write_text(json.dumps(bundle))
    refused(stored, signature, keys, "does not fit")


def test_missing_things_are_named(stored, signature, keys, tmp_path):
    refused(stored, tmp_path / "none.sig", keys, "the model was not signed")
    refused(tmp_path / "nowhere", signature, keys, "is missing")
    with pytest.raises(SetupError, match="cannot be read"):
        check_signature(stored, signature, tmp_path / "none.pub")
    with pytest.raises(SetupError, match="cannot be read"):
        sign(stored, tmp_path / "none.pem", tmp_path / "new.sig")


@pytest.mark.parametrize("name", ["rsa", "p384", "words"])
def test_keys_of_another_kind_are_refused(stored, signature, keys, name, tmp_path):
    with pytest.raises(SetupError, match=r"P-256|prime256v1"):
        sign(stored, keys / f"{name}.pem", tmp_path / "new.sig")
    with pytest.raises(SetupError, match=r"P-256|prime256v1|pubout"):
        check_signature(stored, signature, keys / f"{name}.pub")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "record.json").unlink(), "never finished"),
        (lambda folder: (folder / "data" / "model.onnx").write_bytes(b""), "has sha256"),
        (lambda folder: (folder / "extra").touch(), "its record does not name: extra"),
    ],
    ids=["unfinished", "changed", "added"],
)
def test_what_is_not_as_its_record_says_is_not_signed(stored, keys, tmp_path, damage, words):
    damage(stored)
    with pytest.raises(ArtifactError, match=words):
        sign(stored, keys / "ours.pem", tmp_path / "model.sig")
    assert not (tmp_path / "model.sig").exists()


def use(stored):
    """What loading a stored model leaves behind: MLflow's note, and Python's bytecode."""
    (stored / "registered_model_meta").write_text("model_name: digits.edge\n")
    return Path(py_compile.compile(str(stored / "code" / "serve.py"), doraise=True))


def test_a_model_that_was_used_still_fits(stored, signature, keys):
    use(stored)
    check_signature(stored, signature, keys / "ours.pub")


def test_a_model_that_was_used_before_can_be_signed(stored, keys, tmp_path):
    compiled = use(stored)
    target = sign(stored, keys / "ours.pem", tmp_path / "model.sig")
    compiled.unlink()
    (stored / "registered_model_meta").unlink()
    check_signature(stored, target, keys / "ours.pub")


def test_bytecode_of_another_source_is_found(stored, signature, keys, tmp_path):
    compiled = use(stored)
    other = tmp_path / "serve.py"
    other.write_text("def serve(row):\n    return row * 9.5\n")
    py_compile.compile(str(other), cfile=str(compiled), doraise=True)
    refused(stored, signature, keys, rf"{compiled.name}: not signed")


@pytest.mark.parametrize("content", [b"", b"\0" * 16, b"\0" * 15 + b"i", b"words of any kind"])
def test_bytecode_that_is_none_is_found(stored, signature, keys, content):
    compiled = use(stored)
    compiled.write_bytes(content)
    refused(stored, signature, keys, rf"{compiled.name}: not signed")


def test_bytecode_without_a_source_is_found(stored, signature, keys):
    compiled = use(stored)
    orphan = compiled.with_name(compiled.name.replace("serve", "orphan"))
    orphan.write_bytes(compiled.read_bytes())
    refused(stored, signature, keys, rf"{orphan.name}: not signed")


def test_a_signature_inside_the_folder_is_refused(stored, keys):
    with pytest.raises(SetupError, match="write it elsewhere"):
        sign(stored, keys / "ours.pem", stored / "model.sig")
    assert not (stored / "model.sig").exists()


def test_a_link_is_refused(stored, keys, tmp_path):
    path = stored / "data" / "model.onnx"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="symlink"):
        sign(stored, keys / "ours.pem", tmp_path / "model.sig")


def test_a_place_that_cannot_be_written_is_named(stored, keys, tmp_path):
    with pytest.raises(SetupError, match="cannot be written"):
        sign(stored, keys / "ours.pem", tmp_path / "no" / "folder" / "model.sig")


def test_without_the_package_one_line_says_what_to_install(stored, signature, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    for call in (
        lambda: sign(stored, keys / "ours.pem", signature),
        lambda: check_signature(stored, signature, keys / "ours.pub"),
    ):
        with pytest.raises(SetupError, match=r"pip install 'stillmark\[signing\]'") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
