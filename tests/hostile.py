"""Damaged and hostile files, from a seed, of every format that the package reads, each with what it declares to hold."""

import io
import json
import random
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

import fastscape as fs
from fastscape import zoo
from fastscape.runs.checkpoints import checkpoints, read_optimizer
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.record import Record, read_record

SAVED = Path(__file__).parent / "reports" / "saved"
BOMB = 64 << 20  # bytes of zeros in a few hundred kilobytes
ROOM = 8 << 20  # bytes of objects that any small file may take: its text, parsed, and the modules of its classes


@dataclass(frozen=True)
class File:
    """A file to read.

    Attributes:
        name: its ending says how it is read.
        content: its bytes.
        damage: what was done to it.
    """

    name: str
    content: bytes
    damage: str

    @property
    def declared(self):
        """Bytes that it says to hold: of the members of an archive, or its own."""
        try:
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                return max(len(self.content), sum(member.file_size for member in archive.infolist()))
        except Exception:  # no archive
            return len(self.content)


def model():
    torch.manual_seed(0)
    return zoo.mlp(hidden=(4,))


def originals(folder):
    """Whole files of every format, by name."""
    files = {path.name: path.read_bytes() for path in sorted(SAVED.glob("*.npz"))}
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    for name, content in (
        ("plain.pt", net.state_dict()),
        ("wrapped.ckpt", {"state_dict": net.state_dict(), "epoch": 3}),
        ("step3.optimizer.pt", OptimizerState.of(optimizer, net).to_dict()),
    ):
        stream = io.BytesIO()
        torch.save(content, stream)
        files[name] = stream.getvalue()
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream, _use_new_zipfile_serialization=False)
    files["legacy.pth"] = stream.getvalue()
    files["plain.safetensors"] = save({name: tensor.contiguous() for name, tensor in net.state_dict().items()})
    for name, checksums in (("track.jsonl", False), ("units.crc", True)):
        record = Record(folder / name, "test", {"seed": 1}, checksums=checksums)
        for step in range(20):
            record.append({"point": {"step": step, "values": {"loss": step / 7}}})
        files[name] = (folder / name).read_bytes()
    return files


def read(path, objective):
    """What a file's kind is read by."""
    if path.suffix == ".npz":
        return fs.load(path)
    if path.name.endswith(".optimizer.pt"):
        return read_optimizer(path)
    if path.suffix in (".jsonl", ".crc"):
        return read_record(path, "test", checksums=path.suffix == ".crc")
    (file,) = checkpoints([path])
    return file.at(objective).state.items(), file.optimizer()


def shown(found):
    """What a user does with a result that was read."""
    if hasattr(found, "summary"):
        found.summary()
        found.to_json()


# ---------------------------------------------------------------------------------------- damage to bytes


def truncated(content, chance):
    return content[: chance.randrange(len(content))]


def flipped(content, chance):
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwritten(content, chance):
    start, length = chance.randrange(len(content)), chance.choice((1, 16, 512, 4096))
    filler = chance.choice((b"\x00", b"\xff", b"A", b"["))
    return (content[:start] + filler * length + content[start + length :])[: len(content)]


def cut_out(content, chance):
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.choice((1, 7, 300)) :]


def doubled(content, chance):
    return content + content[chance.randrange(len(content)) :]


def foreign(content, chance):
    return chance.choice(
        (
            b"",
            b"\x00" * 2000,
            b"PK\x03\x04" + chance.randbytes(500),
            b"PK\x05\x06" + b"\x00" * 18,
            b"\x89PNG\r\n\x1a\n" + chance.randbytes(100),
            b"\x93NUMPY\x01\x00" + chance.randbytes(50),
            b"\x80\x02]q\x00." + b"x" * 20,
            b"cos\nsystem\n(S'exit 3'\ntR.",
            b"[" * 100_000,
            b'{"a": ' * 20_000,
            "step,loss\n1,2\né".encode("latin-1"),
            struct.pack("<Q", 1 << 62) + b"{}",
            struct.pack("<Q", 2) + b"{}",
            b"<html>not found</html>",
            chance.randbytes(chance.randrange(1, 3000)),
        )
    )


BYTES = (truncated, flipped, flipped, overwritten, cut_out, doubled, foreign)


# ---------------------------------------------------------------------------------------- damage to what archives hold


def rewritten(members, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def document_of(members):
    return json.loads(str(np.load(io.BytesIO(members["document.npy"]))))


def replaced_array(members, chance):
    names = [name for name in members if name != "document.npy"]
    if not names:
        return members | {"document.npy": npy(np.zeros(3))}
    name = chance.choice(names)
    array = np.load(io.BytesIO(members[name]))
    other = chance.choice(
        (
            lambda: array[..., None],
            lambda: np.concatenate([array, array], axis=0) if array.ndim else np.zeros(2),
            lambda: array.astype(complex),
            lambda: array.astype(str),
            lambda: np.array([{}, None], dtype=object),
            lambda: np.full(array.shape, np.nan) if array.dtype.kind == "f" else array.astype("f8"),
            lambda: np.zeros((0, 3)),
            lambda: np.array(1.0),
        )
    )
    return members | {name: npy(other())}


def missing_member(members, chance):
    gone = chance.choice(list(members))
    return {name: content for name, content in members.items() if name != gone}


def header_that_lies(members, chance):
    name = chance.choice(list(members))
    shape = chance.choice(("(4611686018427387904,)", "(2, 1099511627776)", "(-1,)", "(1e9,)", "(0, 4611686018427387904)", "()"))
    dtype = chance.choice(("<f8", "|O", "<U99999999", "|V8", "<M8[s]"))
    text = f"{{'descr': '{dtype}', 'fortran_order': {chance.choice((True, False))}, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return members | {name: b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\x00" * 64}


def changed_document(members, chance):
    document = document_of(members)
    at = document
    for _ in range(chance.randrange(1, 6)):  # a random place in the tree
        keys = list(at) if isinstance(at, dict) else range(len(at))
        deeper = [key for key in keys if isinstance(at[key], (dict, list)) and at[key]]
        if not deeper:
            break
        at = at[chance.choice(deeper)]
    keys = list(at) if isinstance(at, dict) else range(len(at))
    if keys:
        at[chance.choice(list(keys))] = chance.choice(
            (None, "text", -1, 10**400, [], {}, [[[]]], {"array": "gone"}, {"array": 3}, {"$kind": "gone"}, True, float("nan"))
        )
    return members | {"document.npy": npy(np.array(json.dumps(document)))}


def other_document(members, chance):
    text = chance.choice(("", "[]", "null", "{", '{"format": 1}', '{"format": 1, "kind": [], "result": {}}', "[" * 50_000))
    return members | {"document.npy": chance.choice((npy(np.array(text)), text.encode(), npy(np.array([text, text]))))}


def other_format(members, chance):
    document = document_of(members) | {"format": chance.choice((0, -1, 2, 99, "1", None, 1.5, True, [1]))}
    return members | {"document.npy": npy(np.array(json.dumps(document)))}


def unnamed_bomb(members, _chance):
    """Which is never read."""
    return members | {"more.npy": npy(np.zeros(BOMB // 8))}


def named_bomb(members, chance):
    names = [name for name in members if name != "document.npy"] or ["document.npy"]
    return members | {chance.choice(names): npy(np.zeros(BOMB // 8))}


def document_bomb(members, chance):
    unit = chance.choice(("[],", "0,", "{},", '"",'))
    return members | {"document.npy": npy(np.array("[" + unit * (BOMB // 4 // len(unit)) + "0]"))}


ARRAYS = (
    *(replaced_array, replaced_array, missing_member, header_that_lies, changed_document, changed_document, other_document),
    other_format,
)
BOMBS = (unnamed_bomb, named_bomb, document_bomb)


def lies_in_its_directory(content, chance):
    """Sizes in the central directory of an archive that are not those of the members."""
    place = content.rfind(b"PK\x01\x02", 0, chance.randrange(len(content) // 2, len(content)))
    if place < 0:
        return flipped(content, chance)
    field = place + chance.choice((20, 24))
    return content[:field] + struct.pack("<I", chance.choice((0, 1, 1 << 20, (1 << 32) - 2))) + content[field + 4 :]


def torch_bomb(_content, _chance):
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(BOMB // 4)}, stream)
    return rewritten(members_of(stream.getvalue()))


def other_content(_content, chance):
    """What no model has."""
    net = model().state_dict()
    first = next(iter(net))
    value = chance.choice(
        (
            lambda: net | {first: net[first].to(chance.choice((torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn)))},
            lambda: net | {first: net[first][:1]},
            lambda: net | {first: torch.zeros(1).expand(10**12)},
            lambda: net | {first: torch.empty(3, device="meta")},
            lambda: {1: torch.ones(1), None: torch.ones(1)},
            lambda: {"state": {}, "param_groups": 3},
            lambda: {"state": {0: {"exp_avg": torch.ones(3, dtype=torch.int8)}}, "param_groups": [{"params": [0], "lr": 1.0}]},
            lambda: {"state": [], "param_groups": [{}]},
            lambda: {"state": {}, "param_groups": []},
            lambda: {"optimizer": None, "names": 3},
            lambda: [1, 2],
            lambda: None,
            lambda: {},
            lambda: torch.ones(3),
        )
    )
    stream = io.BytesIO()
    torch.save(value(), stream)
    return stream.getvalue()


def files(count, seed, folder):
    """``count`` files, every format and every damage in turns."""
    chance = random.Random(seed)
    whole = originals(folder)
    names = list(whole)
    for index in range(count):
        name = names[index % len(names)]
        content = whole[name]
        if name.endswith(".npz") and index % 100 < 3:
            damage = BOMBS[index % 3]
        elif name.endswith(".npz") and chance.random() < 0.5:
            damage = chance.choice(ARRAYS)
        elif name.endswith((".pt", ".ckpt", ".pth")) and chance.random() < 0.4:
            damage = chance.choice((other_content, other_content, other_content, torch_bomb))
        elif zipfile.is_zipfile(io.BytesIO(content)) and chance.random() < 0.2:
            damage = lies_in_its_directory
        else:
            damage = chance.choice(BYTES)
        of_members = damage in ARRAYS or damage in BOMBS
        changed = rewritten(damage(members_of(content), chance)) if of_members else damage(content, chance)
        yield File(name, changed, damage.__name__)
