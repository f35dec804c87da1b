#!/usr/bin/env python3
"""A second reader of encrypted repositories, written from shared/repo/FORMAT.md alone.

  reader.py vectors FORMAT.md                   checks the test vectors of the specification
  reader.py slot DIR NUMBER KIND                prints the master key in a slot of a repository, in hexadecimal
  reader.py object DIR NUMBER KIND NAME         prints the content of an object, all of it checked

KIND is key, passphrase or command; the key file's text, the passphrase, or the key that the command printed is read from
standard input. Any disagreement ends it with an error. Needs the part python-crypto of the test bed.
"""

import base64
import json
import struct
import sys
import zlib

import argon2.low_level as argon2
import blake3
import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def check(condition, what):
    if not condition:
        sys.exit(f"disagreement: {what}")


def hkdf(secret, salt, info):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret)


def number(kind):
    return struct.pack("<H", kind)


class Keys:
    """Chapter 4: everything that the master key of a repository gives."""

    def __init__(self, master, repository):
        self.master, self.repository = master, repository
        of_repository = lambda purpose: hkdf(master, repository, b"walpoint 1 " + purpose)
        self.content = of_repository(b"content")
        self.block = of_repository(b"block")
        self.document = of_repository(b"document")
        self.key_check = of_repository(b"key check")

    def frame(self, salt, kind):
        return hkdf(self.master, salt, b"walpoint 1 frame" + number(kind))

    def header(self, salt, kind):
        return hkdf(self.master, salt, b"walpoint 1 header" + number(kind))


def open_document(name, text, key=None):
    """Chapter 3: a document and its check."""
    ending = ',"check":"'
    at = len(text) - len(ending) - 67
    check(text[at:].startswith(ending) and text.endswith('"}\n'), f"{name} does not end as a document")
    body, told = text[:at], text[at + len(ending) : -3]
    hasher = blake3.blake3(key=key) if key else blake3.blake3()
    hasher.update(name.encode() + b"\0" + body.encode())
    check(hasher.hexdigest() == told, f"the check of {name}")
    return json.loads(text)


def secret_of(kind, given, slot):
    """The 32 bytes that open a slot."""
    if kind == "passphrase":
        return argon2.hash_secret_raw(
            given.encode(),
            bytes.fromhex(slot["salt"]),
            time_cost=slot["passes"],
            memory_cost=slot["memory_kib"],
            parallelism=slot["lanes"],
            hash_len=32,
            type=argon2.Type.ID,
            version=0x13,
        )
    secret = bytes.fromhex(given) if len(given) == 64 else base64.b64decode(given + "=" * (-len(given) % 4))
    check(len(secret) == 32, "the key's length")
    return secret


def open_slot(name, text, kind, given):
    """The master key in a key slot."""
    slot = open_document(name, text)
    check(slot["format"] == 1 and slot["kind"] == kind, f"{name} is of another kind")
    told = name.encode() + b"\0" + text.split(',"wrapped":')[0].encode()
    key = hkdf(secret_of(kind, given, slot), bytes.fromhex(slot["salt"]), b"walpoint 1 slot")
    return AESGCM(key).decrypt(bytes(12), bytes.fromhex(slot["wrapped"]), told)


def open_frame(frame, name, kind, salt, keys, index):
    """Chapter 2: the plain bytes of a frame, its flags, and its length."""
    header = frame[:32]
    magic, codec, flags, at, plain, body, told = struct.unpack("<4sBB2xIII4x8s", header)
    check(magic == b"WPfr" and at == index, f"frame {index} of {name} is no such frame")
    hasher = blake3.blake3(key=keys.header(salt, kind))
    hasher.update(salt + number(kind) + header[:24] + name.encode())
    check(hasher.digest(length=8) == told, f"the header of frame {index} of {name}")
    sealed = frame[32 : 32 + body + 16]
    check(len(sealed) == body + 16, f"frame {index} of {name} is cut")
    nonce = index.to_bytes(12, "big")
    content = AESGCM(keys.frame(salt, kind)).decrypt(nonce, sealed, header + name.encode())
    if codec == 1:
        content = zstandard.ZstdDecompressor().decompress(content, max_output_size=plain)
    elif codec == 2:
        content = bytes(plain)
    check(len(content) == plain, f"the length of frame {index} of {name}")
    return content, flags, 32 + body + 16


def open_object(name, data, keys):
    """Chapter 3: the meta frame and the content of an object."""
    magic, version, kind, flags, salt, content_hash, content_len, object_len, frames, meta_len = struct.unpack(
        "<8sHHI16s32sQQII", data[:88]
    )
    check(magic == b"WALPOINT" and version == 1 and flags & 1, f"{name} is no encrypted object")
    hasher = blake3.blake3(key=keys.header(salt, kind))
    hasher.update(salt + number(kind) + data[:112] + name.encode())
    check(hasher.digest(length=16) == data[112:128], f"the header of {name}")
    check(object_len == len(data), f"the length of {name}")
    at, meta, content, seen = 128, b"", [], 0
    for index in range(frames):
        plain, frame_flags, length = open_frame(data[at:], name, kind, salt, keys, index)
        check(bool(frame_flags & 2) == (index == frames - 1), f"the last frame of {name}")
        if frame_flags & 1:
            check(index == 0 and length == meta_len, f"the meta frame of {name}")
            meta = plain
        else:
            content.append(plain)
        at, seen = at + length, seen + 1
    check(at == len(data), f"{name} goes on behind its last frame")
    content = b"".join(content)
    check(len(content) == content_len, f"the content's length of {name}")
    check(blake3.blake3(content, key=keys.content).digest() == content_hash, f"the content hash of {name}")
    return meta, content


def vectors(path):
    """The values between the fences of the chapter with the test vectors, as `name = value`."""
    chapter = open(path, encoding="utf-8").read().split("Test vectors\n")[1]
    values = {}
    for line in chapter.split("```")[1].splitlines()[1:]:
        name, value = line.split(" = ", 1)
        values[name] = value
    binary = lambda name: bytes.fromhex(values[name])
    keys = Keys(binary("master"), binary("repository"))
    for purpose in ["content", "block", "document", "key_check"]:
        check(getattr(keys, purpose) == binary(purpose), purpose)
    salt, kind = binary("salt"), int(values["kind"])
    check(keys.frame(salt, kind) == binary("frame_key"), "frame_key")
    check(keys.header(salt, kind) == binary("header_key"), "header_key")
    for kind_of_slot in ["key", "passphrase", "command"]:
        name, text = f"keys/{values[f'{kind_of_slot}_slot_number']}", values[f"{kind_of_slot}_slot"] + "\n"
        secret = values[f"{kind_of_slot}_slot_secret"]
        check(open_slot(name, text, kind_of_slot, secret) == keys.master, f"the {kind_of_slot} slot")
    meta, content = open_object(values["object_name"], binary("object"), keys)
    check(meta == binary("object_meta") and content == binary("object_content"), "the object")
    frame, flags, _ = open_frame(binary("object")[128:], values["object_name"], kind, salt, keys, 0)
    check(frame == meta and flags == 1, "the first frame")
    # What the check of an unencrypted frame is computed with, so that one agreed library is behind both.
    check(zlib.crc32(b"123456789") == 0xCBF43926, "CRC32")
    print(f"{len(values)} values agree")


def master_of(directory, slot, kind):
    """The master key, checked against the descriptor, and the repository's id."""
    name = f"keys/{slot}"
    text = open(f"{directory}/{name}", encoding="utf-8").read()
    master = open_slot(name, text, kind, sys.stdin.read().rstrip("\r\n"))
    descriptor = open_document("walpoint.json", open(f"{directory}/walpoint.json", encoding="utf-8").read())
    keys = Keys(master, bytes.fromhex(descriptor["id"]))
    check(keys.key_check.hex() == descriptor["encryption"]["key_check"], "key_check")
    return keys


def main(arguments):
    if arguments[:1] == ["vectors"] and len(arguments) == 2:
        vectors(arguments[1])
    elif arguments[:1] == ["slot"] and len(arguments) == 4:
        print(master_of(*arguments[1:]).master.hex())
    elif arguments[:1] == ["object"] and len(arguments) == 5:
        directory, slot, kind, name = arguments[1:]
        keys = master_of(directory, slot, kind)
        data = open(f"{directory}/{name}", "rb").read()
        if data.startswith(b"{"):
            sys.stdout.write(json.dumps(open_document(name, data.decode(), keys.document)))
        else:
            sys.stdout.buffer.write(open_object(name, data, keys)[1])
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
