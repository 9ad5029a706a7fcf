"""Reads all vectors as another implementation would: standard library only.

    read_vectors.py SCHEMA-FOLDER VECTOR-FOLDER

It implements what the schemas use: type, properties, required,
additionalProperties, items. Strict JSON: no duplicate keys, nothing behind.
The states of a list of pieces are computed again by a SHA-256 of its own.
"""
import base64
import hashlib
import json
import pathlib
import sys

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool}


def no_duplicates(pairs):
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("duplicate key")
    return seen


def check(schema, value, path="$"):
    if schema is True or schema == {}:
        return
    kind = schema.get("type")
    if kind in TYPES and not isinstance(value, TYPES[kind]):
        raise ValueError(f"{path}: not of type {kind}")
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{path}: not a number")
        if kind == "integer" and value != int(value):
            raise ValueError(f"{path}: not an integer")
    if kind == "object":
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", []):
            if name not in value:
                raise ValueError(f"{path}: {name} is missing")
        for name, item in value.items():
            if name in properties:
                check(properties[name], item, f"{path}.{name}")
            elif more is False:
                raise ValueError(f"{path}: {name} is unknown")
            elif isinstance(more, dict):
                check(more, item, f"{path}.{name}")
    if kind == "array":
        for i, item in enumerate(value):
            check(schema.get("items", True), item, f"{path}[{i}]")


K = []
H0 = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]


def constants():
    """The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2)."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, int(n**0.5) + 1))]
    for p in primes[:64]:
        low, high = 0, 7 << 32
        while low < high:  # floor(cube root of p, times 2^32)
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**3 <= p << 96 else (low, middle - 1)
        yield low & 0xFFFFFFFF


def compress(state, block):
    """The SHA-256 compression function (FIPS 180-4, 6.2.2)."""
    rotate = lambda x, n: (x >> n | x << (32 - n)) & 0xFFFFFFFF
    w = [int.from_bytes(block[i : i + 4], "big") for i in range(0, 64, 4)]
    for t in range(16, 64):
        s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((w[t - 16] + s0 + w[t - 7] + s1) & 0xFFFFFFFF)
    a, b, c, d, e, f, g, h = state
    for k, x in zip(K, w):
        t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (e & f ^ ~e & g) + k + x
        t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (t1 + t2) & 0xFFFFFFFF, a, b, c, (d + t1) & 0xFFFFFFFF, e, f, g
    return [(x + y) & 0xFFFFFFFF for x, y in zip(state, (a, b, c, d, e, f, g, h))]


def pieces(document):
    """Computes the states of a list of pieces from the bytes 0, 1, 2, ..., and compares."""
    K[:] = constants()
    data, state, states = bytes(range(document["size"])), list(H0), b""
    if "sha256:" + hashlib.sha256(data).hexdigest() != document["blob"]:
        raise ValueError("the blob is another one")
    whole = (document["size"] - 1) // document["pieceSize"] * document["pieceSize"]
    for i in range(0, whole, 64):
        state = compress(state, data[i : i + 64])
        if (i + 64) % document["pieceSize"] == 0:
            states += b"".join(x.to_bytes(4, "big") for x in state)
    if base64.b64encode(states).decode() != document["states"]:
        raise ValueError("the states are other ones")


def main(schemas, vectors):
    wrong = documents = read = 0
    for folder in sorted(pathlib.Path(vectors).iterdir()):
        documents += 1
        schema = json.loads((pathlib.Path(schemas) / (folder.name + ".schema.json")).read_text())
        for file in sorted(folder.glob("*.json")):
            read += 1
            try:
                document = json.loads(file.read_text(), object_pairs_hook=no_duplicates)
                check(schema, document)
                if file.name == "valid.json" and folder.name == "pieces":
                    pieces(document)
                problem = None
            except ValueError as e:
                problem = str(e)
            if (problem is None) != (file.name == "valid.json"):
                wrong += 1
                print(f"{file}: {problem or 'accepted'}")
    print(f"{documents} documents, {read} vectors, {wrong} wrong")
    return 1 if wrong or not read else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
